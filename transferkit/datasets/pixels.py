"""Images of any common kind as RGB tensors: files, PIL images, arrays, tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from transferkit.datasets.photo import photo_size, read_photo, rgb
from transferkit.errors import DataError

AnyImage = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W) or (H, W)."""


def as_pixels(image: AnyImage) -> Tensor:
    """Return an image as an RGB tensor.

    Files are turned the way their EXIF orientation asks. Grey becomes three equal channels, what is transparent is
    laid on white, 16 bits are scaled to 8, and floats are taken to lie in 0..1.

    Args:
        image: See :data:`AnyImage`.

    Returns:
        (3, H, W) uint8.

    Raises:
        DataError: A file that cannot be read, or an array of another shape, type or range.
    """
    if isinstance(image, (str, Path)):
        return read_photo(Path(image), upright=True)
    if isinstance(image, Image.Image):
        return torch.from_numpy(rgb(image)).permute(2, 0, 1).contiguous()
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    levels = _eight_bits(np.asarray(image))
    if levels.ndim == 3 and levels.shape[2] == 1:
        levels = levels[:, :, 0]
    channels = levels.shape[2] if levels.ndim == 3 else 1
    if levels.ndim not in (2, 3) or channels not in (1, 3, 4) or not levels.size:
        raise DataError(
            "an image array must be (H, W), or (H, W, C) with C of 1, 3 or 4, and a tensor (C, H, W), "
            f"got {tuple(image.shape)}"
        )
    return torch.from_numpy(rgb(Image.fromarray(levels))).permute(2, 0, 1).contiguous()


def size_of(image: AnyImage) -> tuple[int, int]:
    """Return ``(height, width)`` of what :func:`as_pixels` would return, without decoding."""
    if isinstance(image, (str, Path)):
        return photo_size(Path(image), upright=True)
    if isinstance(image, Image.Image):
        return image.height, image.width
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return int(image.shape[0]), int(image.shape[1])


def _eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    if levels.dtype == np.uint8:
        return np.ascontiguousarray(levels)
    if levels.dtype == np.bool_:
        return levels.astype(np.uint8) * np.uint8(255)
    if levels.dtype == np.uint16:
        return (levels / 257).round().astype(np.uint8)
    if np.issubdtype(levels.dtype, np.floating) and levels.size and 0 <= levels.min() <= levels.max() <= 1:
        return (levels * 255).round().astype(np.uint8)
    found = f"{levels.dtype}" + (f" from {levels.min():g} to {levels.max():g}" if levels.size else "")
    raise DataError(f"an image array must be uint8, uint16, bool, or floating from 0 to 1, got {found}")
