"""Cached features on disk, and how a sampler is given features in place of pixels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.errors import ArgumentError, DataError, OutputError, StateError
from transferkit.features._photos import digest_of
from transferkit.features.patch_features import PatchFeatures
from transferkit.file_index import FileIndex, Stamp, read_digest
from transferkit.files import write_atomically
from transferkit.sampler._source import PixelSource, described, require_photo, tellers_of

# NumPy has no bfloat16; its bytes are stored as whole numbers.
_STORED = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}

PRECISIONS = tuple(_STORED)

SUFFIX = ".features"


HEADER = 256  # bytes before the patches, which are aligned so


@dataclass(frozen=True)
class CachedImage:
    """One image's patches with their features, and its objects.

    Attributes:
        patches: (P, 4) float64, xyxy, pixels.
        boxes: (N, 4) float64, xyxy, pixels: its objects, as the data set has them.
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
    """A folder with one file for each photo whose features are known.

    A shard is a header, the patches as float64, and their features; it is written whole or not at all, and holds the
    same bytes whoever writes it when. The header holds its name and a digest of the rest.

    Attributes:
        folder: Exists.
        precision: float16, bfloat16 or float32.
        shape: Of the features of a patch.
        index: Remembers which shards are whole.
    """

    folder: Path
    precision: torch.dtype
    shape: tuple[int, ...]
    index: FileIndex

    def path(self, name: str) -> Path:
        """Return where the features of a photo are."""
        return self.folder / f"{name}{SUFFIX}"

    def size(self, patches: int) -> int:
        """Return how many bytes a shard takes."""
        return HEADER + patches * (32 + math.prod(self.shape) * self.precision.itemsize)

    def done(self, name: str, patches: int, *, again: bool = False) -> bool:
        """Tell whether a shard is there and whole; it is read for that only if it changed since, or ``again``."""
        if not again and self.index.get(name, f"{self.folder}/{name}{SUFFIX}") is not None:
            return True
        path = self.path(name)
        try:
            if path.stat().st_size != self.size(patches):
                return False
            stamp, _, _ = read_digest(path)
            header, content = self._read(name)
            if digest_of(content) != header["digest"]:
                self.index.forget(name)
                return False
            self.index.put(name, stamp, [header["digest"]])
        except (OSError, DataError):
            return False
        return True

    def write(self, name: str, image: int, patches: Tensor, features: Tensor) -> None:
        """Write one photo's shard.

        Args:
            name: Of the photo and its patches.
            image: Its place in the data set, for messages.
            patches: (P, 4) float64.
            features: (P, *shape) float32.

        Raises:
            ArgumentError: The precision cannot hold the features.
            OutputError: The disk is full, or the like.
        """
        stored = features.to(self.precision).cpu().contiguous()
        if not torch.isfinite(stored).all():
            raise ArgumentError(
                f"precision {self.precision} cannot hold the features of image {image}, which reach "
                f"{features.abs().max().item():g}; use torch.bfloat16 or torch.float32"
            )
        content = b"".join(part.reshape(-1).view(torch.uint8).numpy().tobytes() for part in (patches, stored))
        header = {"of": self._of(name), "patches": len(patches), "digest": digest_of(content)}
        try:
            self._put(name, header, content)
        except OutputError as error:
            raise OutputError(
                f"{error}; the features that are there stay: make room and fill the cache again, which goes on, or "
                "choose another folder"
            ) from error

    def adopt(self, name: str, content: bytes) -> None:
        """Write the bytes of another machine's shard, unless they are damaged."""
        header = json.loads(content[:HEADER])
        if digest_of(content[HEADER:]) == header["digest"]:
            self._put(name, {**header, "of": self._of(name)}, content[HEADER:])

    def _put(self, name: str, header: dict[str, Any], content: bytes) -> None:
        path = self.path(name)
        write_atomically(path, lambda file: file.writelines([_padded(header), content]))
        self.index.put(name, Stamp.of(path), [header["digest"]])
        self.index.save(at_once=False)

    def read(self, name: str) -> tuple[Tensor, np.ndarray[Any, Any]]:
        """Return a photo's patches, (P, 4) float64, and features, (P, *shape), read when they are looked at.

        Raises:
            DataError: The shard cannot be read, or is damaged.
        """
        header, content = self._read(name)
        patches = header["patches"]
        boxes = torch.from_numpy(np.array(content[: patches * 32]).view(np.float64)).reshape(-1, 4)
        return boxes, content[patches * 32 :].view(_STORED[self.precision]).reshape(patches, *self.shape)

    def bytes_on_disk(self, names: Iterable[str]) -> int:
        """Return how much these shards take."""
        found = 0
        for name in names:
            with suppress(FileNotFoundError):
                found += os.stat(f"{self.folder}/{name}{SUFFIX}").st_size  # noqa: PTH116 - a million are asked
        return found

    def rows(self, image: CachedImage, rows: Tensor) -> Tensor:
        """Return the features of some of an image's patches, (n, *shape), in the precision of the cache."""
        found = torch.from_numpy(image.features[rows.numpy()])
        return found.view(torch.bfloat16) if self.precision == torch.bfloat16 else found

    def _of(self, name: str) -> str:
        return f"{self.folder.name}/{name}"

    def _read(self, name: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
        """Return a shard's header, and what follows it as bytes on disk."""
        path = self.path(name)
        try:
            content = np.memmap(path, np.uint8, mode="r")
            header = json.loads(content[:HEADER].tobytes())
            told = header["of"], type(header["patches"]), type(header["digest"])
            whole = told == (self._of(name), int, str) and content.size == self.size(header["patches"])
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.damaged(name) from error
        if not whole:
            raise self.damaged(name)
        return header, content[HEADER:]

    def damaged(self, name: str) -> DataError:
        """Return the error for a shard that does not hold what it says."""
        return DataError(
            f"{self.path(name)} is damaged; delete it and fill the cache again, which computes it anew"
        )


def move_shard(path: Path, folder: Path) -> None:
    """Move a photo's file to another folder of the same features."""
    if folder.name != path.parent.name:  # the same network, whose probe another machine rounds otherwise
        content = path.read_bytes()
        header = {**json.loads(content[:HEADER]), "of": f"{folder.name}/{path.stem}"}
        write_atomically(path, lambda file: file.writelines([_padded(header), content[HEADER:]]))
    path.replace(folder / path.name)


def _padded(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode().ljust(HEADER - 1) + b"\n"
    return text


# Patches of a stream that are features: read from a cache, or computed as they are needed.


@dataclass(frozen=True)
class CachedSource:
    """Hands a sampler features that lie in a cache.

    Attributes:
        pixels: Which patches they are of.
        shards: Where they lie.
    """

    pixels: PixelSource
    shards: Shards

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch."""
        return self.pixels.always_some

    def patches(self, item: CachedImage, generator: torch.Generator | None = None) -> Tensor:
        """Return all patches of an image, (P, 4) float64."""
        return item.patches

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,)."""
        tellers = tellers_of(dataset, "patch_source")
        return None if tellers is None else (data.patch_count(place) for data, place in tellers)

    def content(self, item: CachedImage, rows: Tensor, boxes: Tensor) -> Tensor:
        """Read the features of the chosen patches, (B, *shape), in the cache's precision."""
        return self.shards.rows(item, rows)

    def make(self, content: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Return some of them, (n, *shape) float32."""
        return content[rows.to(content.device)].float()

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Return zeros, (count, *shape)."""
        return torch.zeros(count, *self.shards.shape, device=device)


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

    def patches(self, item: Any, generator: torch.Generator | None = None) -> Tensor:
        """Return all patches of an image, (P, 4) float64."""
        require_photo(item)
        return self.pixels.patches(item, generator)

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,), where that is known without decoding."""
        return self.pixels.available(dataset)

    def content(self, item: Any, rows: Tensor, boxes: Tensor) -> Tensor:
        """Return the image, (3, H, W) uint8."""
        return self.pixels.content(item, rows, boxes)

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
    pairs = {
        field.name: (getattr(here, field.name), getattr(wanted, field.name)) for field in fields(PixelSource)
    }
    different = [
        f"  {name}: {described(one)!r} for the features, {_other(one, other)} for the sampler"
        for name, (one, other) in pairs.items()
        if not _same(one, other)
    ]
    if different:
        raise ArgumentError(
            "features and sampler must be made with the same settings of patches:\n" + "\n".join(different)
        )


def _same(one: object, other: object) -> bool:
    """Tell whether two settings are one; functions and objects that do not print what they are must be the same."""
    return one is other or (repr(one) == repr(other) and " at 0x" not in repr(one))


def _other(one: object, other: object) -> str:
    alike = described(one) == described(other)
    return "another of that name" if alike else repr(described(other))
