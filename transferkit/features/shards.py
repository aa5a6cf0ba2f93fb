"""Cached features on disk, and how a sampler is given features in place of pixels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.errors import ArgumentError, DataError, StateError
from transferkit.features.patch_features import PatchFeatures
from transferkit.files import write_atomically
from transferkit.sampler._source import PixelSource, described, tellers_of

# NumPy has no bfloat16; its bytes are stored as whole numbers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}

PRECISIONS = tuple(_STORED)


@dataclass(frozen=True)
class CachedImage:
    """One image's patches with their features, and its objects.

    Attributes:
        patches: (P, 4) float64, xyxy, pixels.
        boxes: (N, 4) float64, xyxy, pixels: its objects.
        classes: (N,) int64.
        difficult: (N,) bool, or ``None`` where the data set has no such mark.
        truncated: (N,) bool, or ``None``.
        features: (P, *shape), on disk until it is read.
    """

    patches: Tensor
    boxes: Tensor
    classes: Tensor
    difficult: Tensor | None
    truncated: Tensor | None
    features: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shards:
    """A folder with one shard for each image.

    A shard is two files. The array is written last, so where it is there the image is done; either is written
    whole or not at all, and holds the same bytes whoever writes it when.

    Attributes:
        folder: Exists.
        precision: float16, bfloat16 or float32.
    """

    folder: Path
    precision: torch.dtype

    def array(self, image: int) -> Path:
        """Return where an image's features are."""
        return self.folder / f"{image:07d}.npy"

    def notes(self, image: int) -> Path:
        """Return where an image's boxes and objects are, or why it cannot be used."""
        return self.folder / f"{image:07d}.json"

    def done(self, image: int) -> bool:
        """Tell whether nothing is left to do for an image."""
        return self.array(image).exists() or "problem" in self._notes(image)

    def write(self, image: int, patches: Tensor, item: Any, features: Tensor) -> None:
        """Write one image's shard.

        Args:
            image: Its place in the data set.
            patches: (P, 4) float64.
            item: With ``boxes`` and ``classes``, and perhaps ``difficult`` and ``truncated``.
            features: (P, *shape) float32.
        """
        stored = features.to(self.precision).cpu().contiguous()
        if not torch.isfinite(stored).all():
            raise ArgumentError(
                f"precision {self.precision} cannot hold the features of image {image}, which reach "
                f"{features.abs().max().item():g}; use torch.bfloat16 or torch.float32"
            )
        columns = ("boxes", "classes", "difficult", "truncated")
        notes = {name: getattr(item, name, None) for name in columns}
        self._write_notes(
            image,
            {
                "patches": patches.tolist(),
                **{name: None if column is None else column.tolist() for name, column in notes.items()},
            },
        )
        array = stored.view(torch.int16) if self.precision == torch.bfloat16 else stored
        write_atomically(self.array(image), lambda file: np.save(file, array.numpy()))

    def write_problem(self, image: int, problem: str) -> None:
        """Write that an image cannot be used, and why."""
        self._write_notes(image, {"problem": problem})

    def read(self, image: int) -> CachedImage:
        """Return an image's shard; features are read when they are looked at.

        Raises:
            DataError: The image could not be used, or its shard is not there, or damaged.
        """
        notes = self._notes(image)
        if "problem" in notes:
            raise DataError(notes["problem"])
        try:
            features = np.load(self.array(image), mmap_mode="r")
        except FileNotFoundError:
            raise DataError(f"image {image} is not in the cache at {self.folder}; fill it first") from None
        except ValueError as error:
            raise DataError(f"{self.array(image)} is damaged: {error}; delete it and fill the cache") from error
        boxes = torch.tensor(notes["boxes"], dtype=torch.float64).reshape(-1, 4)
        flags = {name: notes[name] for name in ("difficult", "truncated")}
        return CachedImage(
            patches=torch.tensor(notes["patches"], dtype=torch.float64).reshape(-1, 4),
            boxes=boxes,
            classes=torch.tensor(notes["classes"], dtype=torch.int64),
            **{
                name: None if flag is None else torch.tensor(flag, dtype=torch.bool)
                for name, flag in flags.items()
            },
            features=features,
        )

    def rows(self, image: CachedImage, rows: Tensor) -> Tensor:
        """Return the features of some of an image's patches, (n, *shape), in the precision of the cache."""
        found = torch.from_numpy(image.features[rows.numpy()])
        return found.view(torch.bfloat16) if self.precision == torch.bfloat16 else found

    def count(self, image: int) -> int:
        """Return how many patches an image has, 0 for one that cannot be used."""
        return len(self._notes(image).get("patches", ()))

    def bytes_on_disk(self, images: Sequence[int]) -> int:
        """Return how much the shards of ``images`` take."""
        files = (path for image in images for path in (self.array(image), self.notes(image)))
        return sum(path.stat().st_size for path in files if path.exists())

    def _notes(self, image: int) -> dict[str, Any]:
        try:
            notes: dict[str, Any] = json.loads(self.notes(image).read_bytes())
        except FileNotFoundError:
            return {}
        return notes

    def _write_notes(self, image: int, notes: dict[str, Any]) -> None:
        text = json.dumps(notes)
        write_atomically(self.notes(image), lambda file: file.write(text.encode()))


# Patches of a stream that are features: read from a cache, or computed as they are needed.


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


class ViewOfImages(Dataset[Any]):
    """A data set, image for image, that hands out features; it sends the network to no other process.

    Args:
        dataset: Of annotated images.
        features: Computes the features.
    """

    def __init__(self, dataset: Any, features: PatchFeatures) -> None:
        self._dataset = dataset
        self._features: PatchFeatures | None = features

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        """Tell what the data set tells about its images as a whole: ``ids``, ``image_size`` and so on."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._dataset, name)

    @property
    def features(self) -> PatchFeatures:
        """What computes the features.

        Raises:
            StateError: This was sent to another process, which only decodes and reads.
        """
        if self._features is None:
            raise StateError(
                f"a {type(self).__name__} that was sent to another process only reads; compute features where it was "
                "made"
            )
        return self._features

    @property
    def viewed(self) -> Any:
        """The data set itself, which may be a view of others."""
        return self._dataset

    def __getstate__(self) -> dict[str, Any]:
        """Leave the network at home: workers decode and read."""
        return {**self.__dict__, "_features": None}


class FeatureImages(ViewOfImages):
    """A data set whose patches a sampler hands out as features, computed image by image; nothing is kept.

    The images are decoded by the sampler's workers, and their patches go through the backbone in the process that
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

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]

    def patch_source(self, pixels: PixelSource) -> ComputedSource:
        """Return where a sampler gets its patches, if they are cut as the features want them.

        Raises:
            ArgumentError: They would be cut otherwise; names each setting that differs.
        """
        cutting = self.features.resizing
        own = PixelSource(
            pixels.grid,
            pixels.proposals,
            cutting.patch_size,
            cutting.antialias,
            cutting.whole_pixels,
            cutting.dtype,
        )
        require_same_patches(own, pixels)
        return ComputedSource(own, self.features)


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
