"""One image of a data set, with its objects."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its objects; any object with the same attributes serves as well.

    Attributes:
        image: (3, H, W) uint8, RGB.
        boxes: (N, 4) float64, xyxy, pixels, 0-based and half-open.
        classes: (N,) int64 in 1..K-1; 0 is the background.
        difficult: (N,) bool, hard to recognise.
        truncated: (N,) bool, only partly inside its box.
        id: The image's name.
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor
    difficult: Tensor
    truncated: Tensor
    id: str

    def __repr__(self) -> str:
        height, width = self.image.shape[-2:]
        return f"AnnotatedImage({self.id!r}, {height} x {width} (h x w), classes {self.classes.tolist()})"
