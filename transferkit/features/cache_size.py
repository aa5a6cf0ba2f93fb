"""How much a cache will take, told before it is begun."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferkit.errors import OutputError
from transferkit.sampler.source import PixelSource

_LOOKED_AT = 8  # images that are decoded where only they tell how many patches they have


@dataclass(frozen=True)
class CacheSize:
    """What a cache takes.

    Attributes:
        images: How many.
        patches: Of all images; estimated from a few where ``exact`` is false.
        exact: Whether that is known rather than estimated.
        needed: Bytes, for all images.
        written: Bytes that are there already.
        free: Bytes that the disk has left.
    """

    images: int
    patches: int
    exact: bool
    needed: int
    written: int
    free: int

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        return (
            f"{about}{readable(self.needed)} for {about}{self.patches:,} patches of {self.images:,} images "
            f"({readable(self.written)} written already, {readable(self.free)} free)"
        )

    def require_room(self, folder: Path, limit: int | None) -> None:
        """Raise unless the cache fits the limit, and what is missing the disk.

        Raises:
            OutputError: Saying what is needed, what there is, and what to do.
        """
        advice = "cache fewer images or patches, pool more, store float16, or train without a cache"
        if limit is not None and self.needed > limit:
            raise OutputError(
                f"the cache at {folder} needs {self}, more than its limit of {readable(limit)}; raise the limit, "
                f"{advice}"
            )
        if self.needed - self.written > self.free:
            raise OutputError(f"the cache at {folder} needs {self}; choose another disk, {advice}")


def count_patches(dataset: Any, pixels: PixelSource) -> tuple[int, bool]:
    """Return how many patches all images have, and whether that is known rather than estimated from a few."""
    available = pixels.available(dataset)
    if available is not None:
        return sum(available), True
    step = max(1, len(dataset) // _LOOKED_AT)
    some = range(0, len(dataset), step)
    found = sum(len(pixels.patches(dataset[index])) for index in some)
    return math.ceil(found * len(dataset) / len(some)), len(some) == len(dataset)


def bytes_for(images: int, patches: int, shape: tuple[int, ...], item_size: int) -> int:
    """Return what features and notes take: an array's header is 128 bytes, a box in text about 70."""
    return patches * math.prod(shape) * item_size + 128 * images + 70 * patches + 500 * images


def free_bytes(folder: Path) -> int:
    """Return what the disk of a folder has left."""
    return shutil.disk_usage(folder).free


def readable(count: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> readable(512), readable(11_060_000), readable(55_296_000_000)
        ('512 bytes', '11.1 MB', '55.3 GB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"
