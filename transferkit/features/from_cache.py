"""Patches of a stream that are features: read from a cache, or computed as they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.errors import ArgumentError
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.shards import CachedImage, Shards
from transferkit.sampler.identity import described
from transferkit.sampler.source import PixelSource
from transferkit.sampler.views import tellers_of


@dataclass(frozen=True)
class CachedSource:
    """Hands a sampler features that lie in a cache.

    Attributes:
        pixels: Which patches they are of.
        shards: Where they lie.
        shape: Of one patch's.
    """

    pixels: PixelSource
    shards: Shards
    shape: tuple[int, ...]

    @staticmethod
    def for_sampler(
        cached: PixelSource, wanted: PixelSource, shards: Shards, shape: tuple[int, ...]
    ) -> CachedSource:
        """Return the source, if its patches are those that a sampler wants."""
        require_same_patches(cached, wanted)
        return CachedSource(cached, shards, shape)

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch."""
        return self.pixels.always_some

    def patches(self, item: CachedImage) -> Tensor:
        """Return all patches of an image, (P, 4) float64."""
        return item.patches

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,)."""
        known, tellers = self.pixels.available(dataset), tellers_of(dataset, "patch_source")
        return (self.shards.count(place) for _, place in tellers) if known is None and tellers else known

    def content(self, item: CachedImage, rows: Tensor) -> Tensor:
        """Read the features of the chosen patches, (B, *shape), in the cache's precision."""
        return self.shards.rows(item, rows)

    def make(self, content: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Return some of them, (n, *shape) float32."""
        return content[rows.to(content.device)].float()

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Return zeros, (count, *shape)."""
        return torch.zeros(count, *self.shape, device=device)


@dataclass(frozen=True)
class ComputedSource:
    """Hands a sampler features that are computed from the image when their turn comes.

    Attributes:
        pixels: Which patches they are of.
        features: Computes them.
    """

    pixels: PixelSource
    features: PatchFeatures

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network at home: workers only decode."""
        return {"pixels": self.pixels, "features": None}

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch."""
        return self.pixels.always_some

    def patches(self, item: Any) -> Tensor:
        """Return all patches of an image, (P, 4) float64."""
        return self.pixels.patches(item)

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,), where that is known without decoding."""
        return self.pixels.available(dataset)

    def content(self, item: Any, rows: Tensor) -> Tensor:
        """Return the image, (3, H, W) uint8."""
        return self.pixels.content(item, rows)

    def make(self, content: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Return the features of some of the chosen patches, (n, *shape) float32."""
        return self.features(content, boxes[rows])

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Return zeros, (count, *shape)."""
        return torch.zeros(count, *self.features.shape, device=device)


class FeatureImages(Dataset[Any]):
    """A data set whose patches a sampler hands out as features, computed image by image; nothing is kept.

    The images are decoded by the sampler's workers, and their patches go through the trunk in the process that
    iterates: all chosen patches of an image at once, so that the shared way pays.

    Args:
        dataset: Of annotated images.
        features: Computes them; its settings of pixels are those that a sampler must have.

    Example:
        >>> from transferkit.sampler import AnnotatedImage, MultiscaleSampler, PatchGrid
        >>> none = torch.zeros(0)
        >>> item = AnnotatedImage(torch.zeros(3, 40, 60, dtype=torch.uint8), none, none, none, none, "a")
        >>> features = PatchFeatures(torch.nn.Conv2d(3, 8, 3, 2), patch_size=32)
        >>> sampler = MultiscaleSampler(FeatureImages([item], features), patches_per_image=4, patch_size=32)
        >>> next(iter(sampler)).pixels.shape
        torch.Size([4, 8, 15, 15])
    """

    def __init__(self, dataset: Any, features: PatchFeatures) -> None:
        self._dataset, self._features = dataset, features

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def __getattr__(self, name: str) -> Any:
        """Tell what the data set tells about its images as a whole: ``ids``, ``image_size`` and so on."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network at home: workers only decode."""
        return {**self.__dict__, "_features": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def patch_source(self, pixels: PixelSource) -> ComputedSource:
        """Return where a sampler gets its patches, if they are cut as the features want them.

        Raises:
            ArgumentError: They would be cut otherwise; names each setting that differs.
        """
        cutting = self._features.resizing
        own = PixelSource(
            pixels.grid,
            pixels.proposals,
            cutting.patch_size,
            cutting.antialias,
            cutting.whole_pixels,
            cutting.dtype,
        )
        require_same_patches(own, pixels)
        return ComputedSource(own, self._features)


def require_same_patches(here: PixelSource, wanted: PixelSource) -> None:
    """Raise unless features of ``here`` are those of the patches that a sampler wants.

    Raises:
        ArgumentError: Naming each setting that differs, with both values.
    """
    different = [
        f"  {field.name}: {described(getattr(here, field.name))!r} for the features, "
        f"{described(getattr(wanted, field.name))!r} for the sampler"
        for field in fields(PixelSource)
        if described(getattr(here, field.name)) != described(getattr(wanted, field.name))
    ]
    if different:
        raise ArgumentError(
            "features and sampler must be made with the same settings of patches:\n" + "\n".join(different)
        )
