"""Images in any of the forms that people have them in, as tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transferkit.datasets.photo import read_photo, rgb
from transferkit.errors import ArgumentError


def as_image(image: Any) -> Tensor:
    """Return an image as (3, H, W) uint8 or floating, 0..255.

    Args:
        image: A path; a PIL image; an array or tensor, (H, W), (H, W, 3) or (3, H, W), uint8 or floating in 0..255;
            or an item of a data set with such an ``image``. Grey becomes three equal channels.

    Raises:
        ArgumentError: Another type or shape.
        DataError: A file that is not an image.

    Example:
        >>> as_image(np.zeros((4, 5, 3), np.uint8)).shape, as_image(torch.zeros(4, 5)).shape
        (torch.Size([3, 4, 5]), torch.Size([3, 4, 5]))
    """
    image = getattr(image, "image", image)
    if isinstance(image, str | os.PathLike):
        return read_photo(Path(image), upright=True)
    if isinstance(image, Image.Image):
        return torch.from_numpy(rgb(image)).permute(2, 0, 1)
    if not isinstance(image, np.ndarray | Tensor):
        raise ArgumentError(
            f"an image must be a path, a PIL image, an array or a tensor, got {type(image).__name__}"
        )
    # Of an array that cannot be written, or runs backwards, torch needs a copy.
    pixels = (
        image if isinstance(image, Tensor) else torch.from_numpy(np.require(image, requirements=["C", "W"]))
    )
    if pixels.ndim == 2:
        return pixels.expand(3, *pixels.shape)
    if pixels.ndim == 3 and pixels.shape[0] == 3:
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels.permute(2, 0, 1)
    raise ArgumentError(f"an image must be (H, W), (H, W, 3) or (3, H, W), got {tuple(pixels.shape)}")


def images_of(X: Any) -> Iterator[Tensor]:
    """Yield each image of a list, an array (N, ...) or a data set.

    Raises:
        ArgumentError: It has no length, or is a table.
    """
    if isinstance(X, str | bytes) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        raise ArgumentError(f"X must be a sequence of images, got {type(X).__name__}")
    table = isinstance(X, np.ndarray | Tensor) and X.ndim < 3 and X.dtype is not np.dtype(object)
    if table:
        raise ArgumentError(f"X must be a sequence of images, got an array of shape {tuple(X.shape)}")
    return (as_image(X[index]) for index in range(len(X)))
