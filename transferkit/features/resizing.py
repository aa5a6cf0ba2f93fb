"""How pixels are cut and resized: a value that the exact way and the shared one have in common."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.sampler import crop_and_resize


@dataclass(frozen=True)
class Resizing:
    """The settings of :func:`crop_and_resize`.

    Attributes:
        patch_size: S.
        antialias: Widen the filter where an image shrinks.
        whole_pixels: Truncate boxes to whole pixels, at least one.
        dtype: Of the pixels.
    """

    patch_size: int
    antialias: bool
    whole_pixels: bool
    dtype: torch.dtype

    def patches(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes, (B, 4), cut and resized: (B, 3, S, S)."""
        return self._cut(image, boxes, (self.patch_size, self.patch_size))

    def whole(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the whole image resized, (1, 3, *size), by the filter that cuts patches too."""
        height, width = image.shape[1:]
        return self._cut(image, torch.tensor([[0.0, 0.0, width, height]]), size)

    def seen(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the part of the image that each box is cut from, (P, 4) float64."""
        if not self.whole_pixels:
            return boxes
        height, width = image_size
        start = torch.minimum(boxes[:, :2].floor(), boxes.new_tensor([width - 1, height - 1]))
        return torch.cat([start, torch.maximum(boxes[:, 2:].floor(), start + 1)], dim=1)

    def _cut(self, image: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        return crop_and_resize(
            image, boxes, size, self.antialias, whole_pixels=self.whole_pixels, dtype=self.dtype
        )
