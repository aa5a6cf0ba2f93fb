"""Photos from files, PIL, arrays and tensors: size, orientation, pixels."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from transferkit.errors import DataError

_EXIF_ORIENTATION = 0x0112

# By orientation, what exif_transpose does, in order: exchange x and y, mirror x, mirror y.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1..8; 1 where it has none, or one that means nothing."""
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in _TURNS else 1


def turn_boxes(boxes: Tensor, image_size: tuple[int, int], orientation: int) -> Tensor:
    """Turn boxes together with their photo.

    Args:
        boxes: (N, 4) xyxy, pixels, on the photo as it is stored.
        image_size: ``(height, width)`` of the photo as it is stored.
        orientation: Of the photo, as :func:`exif_orientation` returns.

    Returns:
        (N, 4) on the photo as it is shown.

    Example:
        >>> turn_boxes(torch.tensor([[0.0, 0.0, 10.0, 5.0]]), (40, 60), 6)
        tensor([[35.,  0., 40., 10.]])
    """
    height, width = image_size
    exchange, mirror_x, mirror_y = _TURNS[orientation]
    if exchange:
        boxes, height, width = boxes[:, [1, 0, 3, 2]], width, height
    left, top, right, bottom = boxes.unbind(dim=1)
    if mirror_x:
        left, right = width - right, width - left
    if mirror_y:
        top, bottom = height - bottom, height - top
    return torch.stack([left, top, right, bottom], dim=1)


# Photos from files: their size without decoding, and their pixels as a tensor.

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


def read_photo(path: Path, upright: bool = False, float_range: FloatRange | None = None) -> Tensor:
    """Return a photo as an RGB tensor.

    Args:
        path: JPEG, PNG, or anything else that Pillow reads.
        upright: Turn it the way its EXIF orientation asks. Off by default, since boxes may refer to the pixels
            as stored.
        float_range: See :func:`as_pixels`.

    Returns:
        (3, H, W) uint8 on the cpu.

    Raises:
        DataError: Naming the file: missing, not an image, or truncated.
    """
    with _opened(path) as image:
        try:
            pixels = rgb(ImageOps.exif_transpose(image) if upright else image, float_range)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
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


def rgb(image: Image.Image, float_range: FloatRange | None = None) -> NDArray[np.uint8]:
    """Return an image of any mode as (H, W, 3) uint8; see :func:`as_pixels`."""
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip at 255
        levels = np.asarray(image)
        if image.mode == "F":
            image = Image.fromarray(_of_floats(levels, float_range))
        else:
            image = Image.fromarray((levels.astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image)
    return np.array(image.convert("RGB"))


# Images of any common kind as RGB tensors: files, PIL images, arrays, tensors.

FloatRange = tuple[float, float]
AnyImage = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W) or (H, W)."""


def as_pixels(image: AnyImage, float_range: FloatRange | None = None) -> Tensor:
    """Return an image as an RGB tensor.

    Files are turned the way their EXIF orientation asks. Gray becomes three equal channels, what is transparent is
    laid on white, and 16 bits are scaled to 8. uint8 stays as it is.

    Args:
        image: See :data:`AnyImage`.
        float_range: The values that floats span, ``(0, 1)`` or ``(0, 255)``: from black to white. Their range cannot
            be told from the values of one image, so floats are refused without it.

    Returns:
        (3, H, W) uint8.

    Raises:
        DataError: A file that cannot be read, or an array of another shape, type or range.
    """
    if isinstance(image, (str, Path)):
        return read_photo(Path(image), upright=True, float_range=float_range)
    if isinstance(image, Image.Image):
        return torch.from_numpy(rgb(image, float_range)).permute(2, 0, 1).contiguous()
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    elif not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise DataError(f"an image must be a path, a PIL image, an array or a tensor, got {kind}")
    levels = _eight_bits(np.asarray(image), float_range)
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


def _eight_bits(levels: NDArray[Any], float_range: FloatRange | None) -> NDArray[np.uint8]:
    if levels.dtype == np.uint8:
        return np.ascontiguousarray(levels)
    if levels.dtype == np.bool_:
        return levels.astype(np.uint8) * np.uint8(255)
    if levels.dtype == np.uint16:
        return (levels / 257).round().astype(np.uint8)
    if np.issubdtype(levels.dtype, np.floating) and levels.size:
        return _of_floats(levels, float_range)
    raise DataError(f"an image array must be uint8, uint16, bool, or floating, got {levels.dtype}")


def _of_floats(levels: NDArray[Any], float_range: FloatRange | None) -> NDArray[np.uint8]:
    """Return floats of a range that was told as uint8."""
    found = f"{levels.dtype} from {levels.min():g} to {levels.max():g}"
    if float_range is None:
        raise DataError(
            f"floating pixels need their range, got {found}: say float_range=(0, 1) if 1 is white, or "
            "float_range=(0, 255) if 255 is"
        )
    low, high = float_range
    if not low < high:
        raise DataError(f"float_range must be (low, high) with low below high, got {float_range}")
    if not low <= levels.min() <= levels.max() <= high:  # also true for NaN
        raise DataError(f"floating pixels must lie in float_range={float_range}, got {found}")
    scaled = (levels.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().astype(np.uint8)


# Whether an image is still the one that it was.


def fingerprint(photo: Path, *annotation: object) -> str:
    """Return a digest of a file's bytes and of its annotation; a file that cannot be read has that as its
    digest.

    Args:
        photo: The file.
        annotation: Plain values.
    """
    digest = hashlib.blake2b(repr(annotation).encode(), digest_size=16)
    try:
        digest.update(photo.read_bytes())
    except OSError as error:
        digest.update(f"cannot be read: {type(error).__name__}".encode())
    return digest.hexdigest()
