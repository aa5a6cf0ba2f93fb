"""Images that are read by region: of a slide, a satellite scene or a volume, the chosen boxes and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.annotated import as_tensor
from transferkit.errors import DataError


class RegionReader(Protocol):
    """An image that is read by region; any object of this form will do as an item's ``image`` or further map.

    A patch is made of the whole pixels that its box touches, and of nothing beyond: whoever reads those with numpy
    and resizes them sees the same.

    Open its file in the data set's ``__getitem__``, which the process calls that reads: handles cross no fork.

    One that also has ``coarser``, readers of the same picture at smaller sizes, finest first, as slides have them, is
    read at the coarsest that still has a pixel for each of a patch's.
    """

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)``, pixels."""
        ...

    def read(self, box: tuple[int, int, int, int]) -> Tensor | NDArray[Any]:
        """Return the pixels of a box, (C, h, w), of any real dtype.

        Args:
            box: ``(left, top, right, bottom)``, whole pixels, inside the image and not empty.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArrayReader:
    """Read a tensor, or any array that is sliced as numpy's are, by region: zarr's, h5py's, nibabel's, a memmap.

    Attributes:
        array: (C, H, W), or (H, W) for one channel.
        channels_last: Whether it is (H, W, C).

    Example:
        >>> reader = ArrayReader(np.arange(24).reshape(4, 6))
        >>> reader.size, reader.read((1, 0, 3, 2)).tolist()
        ((4, 6), [[[1, 2], [7, 8]]])
    """

    array: Any
    channels_last: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)``, pixels."""
        shape = self.array.shape
        height, width = shape[:2] if self.channels_last else shape[-2:]
        return int(height), int(width)

    def read(self, box: tuple[int, int, int, int]) -> Tensor:
        """Return the pixels of a box, (C, h, w)."""
        left, top, right, bottom = box
        if self.channels_last:
            part = as_tensor("image", self.array[top:bottom, left:right])
            part = part.permute(2, 0, 1) if part.ndim == 3 else part
        else:
            part = as_tensor("image", self.array[..., top:bottom, left:right])
        return part[None] if part.ndim == 2 else part


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def bits(values: Tensor) -> Tensor:
    """Return the same memory as a type that torch can index and mirror, as it cannot most unsigned ones."""
    return values.view(_SIGNED.get(values.dtype, values.dtype))


# From what a data set's item has to a tensor in memory or a reader, and from a reader to patches.


def as_image(item: Any, name: str) -> Tensor | RegionReader:
    """Return an item's image or map: a (C, H, W) tensor if it is in memory, else what reads it by region.

    Raises:
        DataError: It is neither.
    """
    image = getattr(item, name)
    if isinstance(image, (Tensor, np.ndarray)) and not isinstance(image, np.memmap):
        image = as_tensor(name, image)
    if isinstance(image, Tensor):
        image = image[None] if image.ndim == 2 else image
        if image.ndim == 3 and image.numel() and not image.is_complex():
            return image
    elif callable(getattr(image, "read", None)):
        return image  # type: ignore[no-any-return]
    elif hasattr(image, "shape") and hasattr(image, "__getitem__"):
        return ArrayReader(image)
    found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
    raise DataError(
        f"{name} must be (C, H, W) of real numbers, a tensor or an array, or have size and read(box), got {found}"
    )


def size_of(image: Tensor | RegionReader) -> tuple[int, int]:
    """Return ``(height, width)``."""
    try:
        height, width = image.shape[-2:] if isinstance(image, Tensor) else image.size
        return int(height), int(width)
    except Exception as error:
        raise DataError(f"its size cannot be read: {type(error).__name__}: {error}") from error


Cut = Callable[[Tensor, Tensor], Tensor]
"""Takes a region, (C, h, w), and boxes in it, (n, 4); returns patches, (n, C, S, S)."""


def cut_regions(reader: RegionReader, boxes: Tensor, size: int, cut: Cut) -> Tensor:
    """Read each of the boxes, (B, 4), once, and return them as ``cut(region, box)`` makes patches, (B, C, S, S)."""
    rows: dict[tuple[float, ...], list[int]] = {}
    for row, box in enumerate(boxes.tolist()):
        rows.setdefault(tuple(box), []).append(row)
    patches = torch.empty(0, 1, size, size)
    for box, places in rows.items():
        patch = _cut_one(reader, box, size, cut)
        if not len(patches):
            patches = patch.new_empty(len(boxes), *patch.shape[1:])
        for place in places:
            patches[place] = patch[0]
    return patches


def _cut_one(reader: RegionReader, box: Sequence[float], size: int, cut: Cut) -> Tensor:
    """Read one box, out to whole pixels and as far as the image goes, and return its patch, (1, C, S, S)."""
    reader, (x0, y0, x1, y1) = _coarse_enough(reader, box, size)
    height, width = size_of(reader)
    left, top = (min(max(math.floor(at), 0), most - 1) for at, most in ((x0, width), (y0, height)))
    right, bottom = max(min(math.ceil(x1), width), left + 1), max(min(math.ceil(y1), height), top + 1)
    region = as_tensor("read", reader.read((left, top, right, bottom)))
    if region.ndim != 3 or tuple(region.shape[1:]) != (bottom - top, right - left):
        found, wanted = tuple(region.shape), f"(C, {bottom - top}, {right - left})"
        raise DataError(
            f"read({(left, top, right, bottom)}) must return {wanted}, got {found} of {reader!r:.80}"
        )
    return cut(region, torch.tensor([[x0 - left, y0 - top, x1 - left, y1 - top]], dtype=torch.float64))


def _coarse_enough(
    reader: RegionReader, box: Sequence[float], size: int
) -> tuple[RegionReader, Sequence[float]]:
    """Return the coarsest reader that has a pixel for each of the patch's, and the box in its pixels."""
    x0, y0, x1, y1 = box
    height, width = size_of(reader)
    for coarse in reversed(getattr(reader, "coarser", ())):
        rows, columns = size_of(coarse)
        x, y = columns / width, rows / height
        if min((x1 - x0) * x, (y1 - y0) * y) >= 0.99 * size:  # sizes are rounded: 3073 pixels become 768
            return coarse, (x0 * x, y0 * y, x1 * x, y1 * y)
    return reader, box
