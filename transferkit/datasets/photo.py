"""Photos from files: their size without decoding, and their pixels as a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from transferkit.errors import DataError

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange width and height


def photo_size(path: Path, upright: bool = False) -> tuple[int, int]:
    """Return ``(height, width)`` from a photo's header.

    Args:
        path: The photo.
        upright: The size after turning it the way its EXIF orientation asks, as :func:`read_photo` does.

    Raises:
        DataError: Naming the file.
    """
    with _opened(path) as image:
        turned = upright and image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
        return (image.width, image.height) if turned else (image.height, image.width)


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
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's plugins raise all three on damaged data
            raise DataError(f"{path} is damaged: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image: {error}") from error


def rgb(image: Image.Image) -> np.ndarray:
    """Return an image of any mode as (H, W, 3) uint8; 16 bits are scaled, what is transparent is laid on white."""
    if image.mode.startswith(("I", "F")):  # 16 bits: Pillow's own conversion would clip at 255
        levels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((levels / 257).clip(0, 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image)
    return np.array(image.convert("RGB"))
