"""Cached features on disk: for each image one array, and what labels need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.atomic import write_atomically
from transferkit.errors import ArgumentError, DataError

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
