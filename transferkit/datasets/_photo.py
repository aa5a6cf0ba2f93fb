"""Photos from files, PIL, arrays and tensors: size, orientation, pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from transferkit.annotated import as_tensor
from transferkit.errors import DataError
from transferkit.file_index import found_in
from transferkit.files import is_file

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
    return int(orientation) if orientation in _TURNS else 1


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

PHOTO_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
"""The formats that photos may have, as Pillow calls them. Others run programs: PostScript runs Ghostscript."""

MAX_PIXELS = 125_000_000
"""The largest photo that is decoded, in 1 GB; ``PIL.Image.MAX_IMAGE_PIXELS`` raises it, and ``None`` lifts it."""

_STRIP = 1 << 22  # pixels that are converted at a time


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
    height, width, orientation = found_in(path, "size", lambda: _read_size(path))
    return (height, width), orientation


def _read_size(path: Path) -> list[int]:
    with _opened(path) as image:
        if image.format == "PNG" and not _tells_after_pixels(path):
            image.getexif = partial(Image.Image.getexif, image)  # type: ignore[method-assign]  # Pillow's decodes it
        orientation = exif_orientation(image)
        width, height = image.size
        if image.format == "TIFF":  # Pillow tells the size that it has when turned, and turns it when decoding
            width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
        return [height, width, orientation]


def _tells_after_pixels(path: Path) -> bool:
    """Return whether a PNG has text or EXIF after its pixels, where its orientation may be."""
    with path.open("rb") as file:
        file.seek(8)
        after = False
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            after |= head[4:] == b"IDAT"
            if after and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def read_photo(path: Path, upright: bool = False, float_range: FloatRange | None = None) -> Tensor:
    """Return a photo as an RGB tensor.

    Args:
        path: In one of :data:`PHOTO_FORMATS`.
        upright: Turn it the way its EXIF orientation asks. Off by default, since boxes may refer to the pixels
            as stored.
        float_range: See :func:`as_pixels`.

    Returns:
        (3, H, W) uint8 on the cpu.

    Raises:
        DataError: Naming the file: missing, not a photo, too large, or damaged in whatever way.
    """
    with _opened(path) as image:
        orientation = exif_orientation(image)
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        elif image.format == "TIFF" and orientation > 1:
            image.load()
            if exif_orientation(image) == 1:  # turned by decoding: back, in place, since the photo may be large
                image.getexif()[_EXIF_ORIENTATION] = {6: 8, 8: 6}.get(orientation, orientation)
                ImageOps.exif_transpose(image, in_place=True)
        return _tensor(image, float_range)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a photo, look at its size before anything is decoded, and give every error the photo's name."""
    if not is_file(path):  # a pipe would be waited for
        raise DataError(f"{path} is {'not a file' if os.path.lexists(path) else 'missing'}")
    what = "not a readable image"
    try:
        with Image.open(path, formats=PHOTO_FORMATS) as image:
            what = "damaged"
            _require_small(image)
            _require_bytes(image)
            yield image
    except MemoryError as error:
        raise DataError(f"{path} needs more memory than there is: {error}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(PHOTO_FORMATS)
        raise DataError(
            f"{path} is not a readable image: it is none of {formats}; open others yourself and give the image"
        ) from error
    except Exception as error:  # Pillow's readers raise whatever goes wrong in them
        raise DataError(f"{path} is {what}: {error or type(error).__name__}") from error


def _require_small(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS and max(MAX_PIXELS, Image.MAX_IMAGE_PIXELS)
    if limit is not None and image.width * image.height > limit:
        raise DataError(
            f"{image.width} x {image.height} are more than {limit:,} pixels, refused before decoding; if it is "
            "to be trusted, set PIL.Image.MAX_IMAGE_PIXELS to a larger number"
        )


def _require_bytes(image: Image.Image) -> None:
    """Raise if an image is of more than bytes, or of more than a picture, of which Pillow would drop the rest."""
    found, bits = "", _bits(image)
    if image.mode.startswith("I"):
        found = f"levels of more than 8 bits (Pillow's mode {image.mode})"
    elif image.mode == "LAB":
        found = "colors of CIELAB"
    elif bits > 8:
        found = f"{bits} bits in each channel"
    elif image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False):
        found = f"{image.n_frames} frames"  # type: ignore[attr-defined]  # not MPO's: its first is the photo
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        pages, bands = image.n_frames, tags.get(_SAMPLES, 1)  # type: ignore[attr-defined]
        colors = _COLORS.get(tags.get(_PHOTOMETRIC), bands)
        if pages > 1:
            found = f"{pages} pages"
        elif bands > colors + (tags.get(_EXTRA_SAMPLES, (0,))[0] in _ALPHA):
            found = f"{bands} bands"
    if found:
        raise DataError(
            f"it has {found}, which no picture of RGB bytes holds, and nothing is converted unasked; save it as one, "
            "or read it yourself and give the tensor (C, H, W), whose values are kept"
        )


def _bits(image: Image.Image) -> int:
    """Return how many bits a channel has in an image's file; 8 where that is not told, or it is decoded already."""
    encodings = [tile[3] for tile in getattr(image, "tile", ())]
    if image.format == "PPM":
        told = (value for encoding in encodings if isinstance(encoding, tuple) for value in encoding)
        return max((value.bit_length() for value in told if isinstance(value, int)), default=8)
    if image.format == "JPEG2000":
        return _bits_of_jpeg2000(image.fp) if encodings else 8  # type: ignore[attr-defined]
    if image.format in ("BMP", "DIB"):  # 16 bits of all three
        return 8
    return next((bits for bits in (16, 12) if f";{bits}" in str(encodings)), 8)


def _bits_of_jpeg2000(file: IO[bytes]) -> int:
    begin, place = b"\xff\x4f\xff\x51", file.tell()
    file.seek(0)
    head = file.read(1 << 20)
    head = (head if begin in head else head + file.read()).partition(begin)[2]
    file.seek(place)
    components = int.from_bytes(head[36:38], "big")
    return max(((depth & 127) + 1 for depth in head[38 : 38 + 3 * components : 3]), default=8)


_PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 262, 277, 338  # TIFF's tags
_COLORS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # bands of what the first says: of RGB 3
_ALPHA = (1, 2)  # what the last says of transparency


def _tensor(image: Image.Image, float_range: FloatRange | None) -> Tensor:
    """Return an image of any mode as (3, H, W) uint8, converted in strips to hold little beside it."""
    width, height = image.size
    rows = max(1, _STRIP // max(1, width))
    if rows >= height:
        return torch.from_numpy(rgb(image, float_range)).permute(2, 0, 1).contiguous()
    pixels = torch.empty(3, height, width, dtype=torch.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[:, top : top + rows] = torch.from_numpy(rgb(strip, float_range)).permute(2, 0, 1)
    return pixels


def rgb(image: Image.Image, float_range: FloatRange | None = None) -> NDArray[np.uint8]:
    """Return an image of any mode as (H, W, 3) uint8; see :func:`as_pixels`."""
    if image.mode == "F":  # Pillow's own conversion would clip at 255
        image = Image.fromarray(_of_floats(np.asarray(image), float_range))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(backdrop, image)
    return np.array(image.convert("RGB"))


# Images of any common kind as tensors: files, PIL images, arrays, tensors.

FloatRange = tuple[float, float]
AnyImage = str | Path | Image.Image | NDArray[Any] | Tensor
"""A file, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W) or (H, W)."""


def as_pixels(image: AnyImage, float_range: FloatRange | None = None, *, upright: bool = False) -> Tensor:
    """Return an image as a tensor: a picture as RGB bytes, and anything else as it is.

    Files are turned the way their EXIF orientation asks, PIL images if ``upright``. Gray bytes become three equal
    channels, and what is transparent in a file or a PIL image is laid on white. Arrays and tensors of other types or
    of other numbers of channels keep them, and their values.

    Args:
        image: See :data:`AnyImage`.
        float_range: The values that floats span, ``(0, 1)`` or ``(0, 255)``: from black to white. Their range cannot
            be told from the values of one image, so floats are refused without it.
        upright: Turn a PIL image as its EXIF orientation asks.

    Returns:
        (3, H, W) uint8 of a picture; (C, H, W) of its own type of another array or tensor.

    Raises:
        DataError: A file that cannot be read or is no picture of bytes, or an array of another shape, type or range.
    """
    if isinstance(image, (str, Path)):
        return read_photo(Path(image), upright=True, float_range=float_range)
    if isinstance(image, Image.Image):
        return _of_pil(image, float_range, upright)
    if not isinstance(image, (Tensor, np.ndarray)):
        kind = type(image).__name__
        raise DataError(f"an image must be a path, a PIL image, an array or a tensor, got {kind}")
    pixels = as_tensor("image", image).detach().cpu()
    if pixels.ndim == 3 and isinstance(image, np.ndarray):
        pixels = pixels.permute(2, 0, 1) if image.shape[2] in (1, 3, 4) else pixels[:0]
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or not pixels.numel():
        raise DataError(
            "an image array must be (H, W), or (H, W, C) with C of 1, 3 or 4, and a tensor (C, H, W), "
            f"got {tuple(image.shape)}"
        )
    if pixels.is_floating_point():
        pixels = torch.from_numpy(_of_floats(pixels.numpy(), float_range))
    if pixels.dtype not in _KEPT:
        raise DataError(f"an image array must be {', '.join(map(str, _KEPT))} or floating, got {pixels.dtype}")
    return (
        pixels.expand(3, -1, -1) if len(pixels) == 1 and pixels.dtype == torch.uint8 else pixels
    ).contiguous()


_KEPT = (torch.uint8, torch.uint16, torch.int16, torch.int32, torch.bool)


def _of_pil(image: Image.Image, float_range: FloatRange | None, upright: bool) -> Tensor:
    try:
        _require_bytes(image)
        return _tensor(ImageOps.exif_transpose(image) if upright else image, float_range)
    except DataError:
        raise
    except Exception as error:  # it is decoded only now
        name = getattr(image, "filename", "") or "a PIL image"
        raise DataError(f"{name} cannot be decoded: {error or type(error).__name__}") from error


def size_of(image: AnyImage, upright: bool = False) -> tuple[int, int]:
    """Return ``(height, width)`` of what :func:`as_pixels` would return, without decoding."""
    if isinstance(image, (str, Path)):
        return photo_size(Path(image), upright=True)
    if isinstance(image, Image.Image):
        turned = upright and exif_orientation(image) >= 5
        return (image.width, image.height) if turned else (image.height, image.width)
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return int(image.shape[0]), int(image.shape[1])


def _of_floats(levels: NDArray[Any], float_range: FloatRange | None) -> NDArray[np.uint8]:
    """Return floats of a range that was told as uint8."""
    found = f"{levels.dtype} from {levels.min():g} to {levels.max():g}"
    if float_range is None:
        raise DataError(
            f"floating pixels need their range, got {found}: say float_range=(0, 1) if 1 is white, or "
            "float_range=(0, 255) if 255 is; a sampler takes any floats as they are from a data set of your own"
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
