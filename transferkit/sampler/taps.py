"""Which pixels a resized pixel is made of, and with what weights: PIL's bilinear filter along one axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Taps:
    """For G intervals resampled to S values each, the T pixels that every value is a weighted mean of.

    Attributes:
        index: (G, S, T) int64, always inside the axis; surplus taps have weight 0.
        weight: (G, S, T) float64, summing to 1 over T.
    """

    index: Tensor
    weight: Tensor


def bilinear_taps(
    intervals: Tensor, count: int, length: int, *, antialias: bool = True, whole_pixels: bool = False
) -> Taps:
    """Return the taps that resample intervals of an axis to ``count`` values each.

    Value i looks at ``start + (i + 0.5) * scale``, where ``scale = (end - start) / count``. A pixel whose centre
    is at distance d from there weighs ``max(0, 1 - d / width)``, where ``width`` is 1, or ``scale`` where an
    antialiased interval shrinks. Pixels outside the axis weigh nothing; the rest is scaled to a sum of 1.

    Args:
        intervals: (G, 2) float64 start and end, pixels, within ``0..length``.
        count: S, how many values each interval becomes.
        length: Pixels of the axis.
        antialias: Widen the filter where an interval shrinks.
        whole_pixels: Truncate the intervals to whole pixels, at least one, and weigh only pixels inside them.
    """
    first = torch.zeros_like(intervals[:, 0])
    last = torch.full_like(first, length)  # the pixels first..last-1 may be seen
    if whole_pixels:
        first = intervals[:, 0].floor().clamp(max=length - 1)
        last = torch.maximum(intervals[:, 1].floor(), first + 1)
        intervals = torch.stack([first, last], dim=1)
    scale = ((intervals[:, 1] - intervals[:, 0]) / count)[:, None]  # (G, 1)
    width = scale.clamp(min=1) if antialias else torch.ones_like(scale)
    steps = torch.arange(count, dtype=torch.float64, device=intervals.device)
    centre = intervals[:, :1] + (steps + 0.5) * scale  # (G, S)
    reach = torch.arange(math.ceil(2 * float(width.max())), dtype=torch.float64, device=intervals.device)
    index = (centre - width + 0.5).floor()[..., None] + reach  # (G, S, T)
    distance = (index + 0.5 - centre[..., None]).abs()
    weight = (1 - distance / width[..., None]).clamp(min=0)
    seen = (index >= first[:, None, None]) & (index < last[:, None, None])
    weight = torch.where(seen, weight, 0)
    return Taps(index.clamp(0, length - 1).long(), weight / weight.sum(dim=2, keepdim=True))
