"""Photos from files: their size without decoding, and their pixels as a tensor."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from transferkit.datasets.orientation import exif_orientation
from transferkit.errors import DataError

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # Pillow's plugins raise all of these


def photo_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """Return ``(height, width)`` from a photo's header.

    Args:
        path: The photo.
        upright: The size after turning it the way its EXIF orientation asks, as :func:`read_photo` does.

    Raises:
        DataError: Naming the file.
    """
    (height, width), orientation = stored_size(path)
    return (width, height) if upright and orientation >= 5 else (height, width)


def stored_size(path: Path) -> tuple[tuple[int, int], int]:
    """Return ``(height, width)`` of a photo as it is stored, and its EXIF orientation, 1..8, from its header.

    Raises:
        DataError: Naming the file.
    """
    with _opened(path) as image:
        try:
            return (image.height, image.width), exif_orientation(image)
        except _DAMAGE as error:
            raise DataError(f"{path} is damaged: {error}") from error


def read_photo(path: Path, upright: bool = False) -> Tensor:
    """Return a photo as an RGB tensor.

    Args:
        path: JPEG, PNG, or anything else that Pillow reads.
        upright: Turn it the way its EXIF orientation asks. Off by default, since boxes may refer to the pixels
            as stored.

    Returns:
        (3, H, W) uint8 on the cpu.

    Raises:
        DataError: Naming the file: missing, not an image, or truncated.
    """
    with _opened(path) as image:
        try:
            pixels = rgb(ImageOps.exif_transpose(image) if upright else image)
        except _DAMAGE as error:
            raise DataError(f"{path} is damaged: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image: {error}") from error


def rgb(image: Image.Image) -> np.ndarray:
    """Return an image of any mode as (H, W, 3) uint8.

    16 bits are scaled to 8, floats are taken to lie in 0..1, what is transparent is laid on white.

    Raises:
        DataError: Floats outside 0..1.
    """
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        levels = np.asarray(image, dtype=np.float64)
        if image.mode == "F" and not 0 <= levels.min() <= levels.max() <= 1:
            raise DataError(f"floating pixels must lie in 0..1, got {levels.min():g} to {levels.max():g}")
        levels = levels * 255 if image.mode == "F" else levels / 257
        image = Image.fromarray(levels.clip(0, 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image)
    return np.array(image.convert("RGB"))
