"""Boxes as tensors: xyxy, float pixels, 0-based, half-open.

``(0, 0, 10, 5)`` is ten pixels wide and five high. Every function takes boxes on any device and answers there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.annotated import as_tensor
from transferkit.errors import ArgumentError, require

__all__ = ["area", "as_boxes", "clip", "coverage", "intersection", "iou"]


def as_boxes(boxes: Tensor | NDArray[Any], argument: str = "boxes") -> Tensor:
    """Return ``boxes`` as a floating (N, 4) tensor, or say what is wrong with them.

    Args:
        boxes: (N, 4) xyxy, pixels, a tensor or an array; integer boxes become float64. An empty one of any shape is
            (0, 4).
        argument: What to call them in an error.

    Returns:
        (N, 4) float tensor on the same device.

    Raises:
        ArgumentError: Another shape, a value that is not finite, or a box whose end lies before its start.
    """
    boxes = as_tensor(argument, boxes)
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ArgumentError(f"{argument} must be (N, 4) xyxy boxes, got shape {tuple(boxes.shape)}")
    boxes = boxes if boxes.is_floating_point() else boxes.double()
    wrong = ~torch.isfinite(boxes).all(dim=1) | (boxes[:, 2:] < boxes[:, :2]).any(dim=1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ArgumentError(
            f"{argument} must be finite with xmin <= xmax and ymin <= ymax, "
            f"got {boxes[first].tolist()} at row {first} ({int(wrong.sum())} such boxes)"
        )
    return boxes


def as_size(argument: str, size: Any, least: int = 1) -> tuple[int, int]:
    """Return ``(height, width)`` of one whole number or two, each ``least`` or more."""
    sides = np.asarray(size).reshape(-1).tolist()
    fits = len(sides) in (1, 2) and all(type(side) is int and side >= least for side in sides)
    require(fits, argument, f"{least} or more, or (height, width) of such", size)
    return sides[0], sides[-1]


def require_inside(boxes: Tensor, image_size: tuple[int, int]) -> None:
    """Raise unless all ``boxes``, (N, 4) xyxy, lie inside an image of ``(height, width)`` pixels."""
    height, width = image_size
    outside = ((boxes < 0) | (boxes > boxes.new_tensor([width, height, width, height]))).any(dim=1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ArgumentError(
            f"boxes must lie inside the image, {width} wide and {height} high, "
            f"got {boxes[row].tolist()} at row {row} ({int(outside.sum())} such boxes); cut them with "
            "transferkit.boxes.clip"
        )


def area(boxes: Tensor) -> Tensor:
    """Return the area of each box.

    Args:
        boxes: (N, 4) xyxy, pixels.

    Returns:
        (N,) square pixels, same dtype and device.

    Example:
        >>> area(torch.tensor([[0.0, 0.0, 10.0, 5.0]]))
        tensor([50.])
    """
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Return the area that each box of ``a`` shares with each box of ``b``.

    Args:
        a: (P, 4) xyxy, pixels.
        b: (N, 4) xyxy, pixels, same frame.

    Returns:
        (P, N) square pixels.

    Example:
        >>> intersection(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[5.0, 5.0, 20.0, 20.0]]))
        tensor([[25.]])
    """
    start = torch.maximum(a[:, None, :2], b[None, :, :2])  # (P, N, 2)
    end = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    return (end - start).clamp(min=0).prod(dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return intersection over union, (P, N); two empty boxes have 0.

    Args:
        a: (P, 4) xyxy, pixels.
        b: (N, 4) xyxy, pixels, same frame.
    """
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(shared.dtype).tiny), 0)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return the part of each box that lies inside the image.

    Args:
        boxes: (N, 4) xyxy, pixels.
        image_size: ``(height, width)``, pixels.

    Example:
        >>> clip(torch.tensor([[-5.0, 2.0, 30.0, 8.0]]), (10, 20))
        tensor([[ 0.,  2., 20.,  8.]])
    """
    height, width = image_size
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def coverage(values: Tensor | NDArray[Any], boxes: Tensor | NDArray[Any]) -> Tensor:
    """Return the mean of a map over each box: what share of it is tissue, has no data, or shows each class.

    By an integral image, so that it costs no more for many boxes, or large ones: 8 bytes a pixel, one channel at a
    time. Boxes are exact: a pixel that lies half in a box counts half.

    Args:
        values: (H, W), or (C, H, W), a map of any real dtype, bool included, without NaN and infinity.
        boxes: (P, 4) xyxy, pixels of the map. Of a box that leaves it the part inside counts.

    Returns:
        (P,), or (P, C), float64; NaN for a box of which no part lies in the map.

    Raises:
        ArgumentError: Another shape, or values that are not finite.

    Example:
        >>> tissue = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
        >>> coverage(tissue, torch.tensor([[0, 0, 2, 2], [1, 0, 4, 2], [1.5, 0, 2.5, 1]])).tolist()
        [1.0, 0.3333333333333333, 0.5]
    """
    values = as_tensor("values", values)
    fits = values.ndim in (2, 3) and values.numel() > 0 and not values.is_complex()
    require(fits, "values", "(H, W) or (C, H, W), real and not empty", (tuple(values.shape), values.dtype))
    finite = bool(values.isfinite().all())
    require(finite, "values", "finite (ask for the share of values.isnan(), then)", "NaN or infinity")
    seen = clip(as_boxes(boxes).to(values.device).double(), (values.shape[-2], values.shape[-1]))
    channels = values.reshape(-1, *values.shape[-2:])
    means = torch.stack([_means(channel, seen) for channel in channels], dim=1)
    means[area(seen) == 0] = torch.nan
    return means.reshape(len(seen), *values.shape[:-2])


def _means(channel: Tensor, boxes: Tensor) -> Tensor:
    """Return the mean of a map, (H, W), over each box, (P,)."""
    height, width = channel.shape
    table = torch.zeros(height + 1, width + 1, dtype=torch.float64, device=channel.device)
    table[1:, 1:] = channel
    least, most = table[1:, 1:].aminmax()
    table.cumsum_(0).cumsum_(1)  # the sum of all pixels above and to the left of each corner

    def before(x: Tensor, y: Tensor) -> Tensor:
        column, row = x.long().clamp(max=width - 1), y.long().clamp(max=height - 1)
        above = table[row, column].lerp(table[row, column + 1], x - column)
        below = table[row + 1, column].lerp(table[row + 1, column + 1], x - column)
        return above.lerp(below, y - row)

    x0, y0, x1, y1 = boxes.unbind(dim=1)
    sums = before(x1, y1) - before(x0, y1) - before(x1, y0) + before(x0, y0)
    return (sums / area(boxes)).clamp(least, most)  # rounding would give a share below 0
