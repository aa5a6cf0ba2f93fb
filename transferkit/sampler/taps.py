"""Which pixels a resized pixel is made of, and with what weights: PIL's bilinear filter along one axis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Taps:
    """For G intervals resampled to S values each, the T pixels that every value is a weighted mean of.

    NumPy, because these are small arrays, on which torch spends most of its time in starting.

    Attributes:
        index: (G, S, T) int32, always inside the axis; surplus taps have weight 0.
        weight: (G, S, T) float64, summing to 1 over T.
        needed: (G,) how many of the T each interval has use for.
    """

    index: NDArray[np.int32]
    weight: NDArray[np.float64]
    needed: NDArray[np.int64]

    def __getitem__(self, some: slice | NDArray[np.int64]) -> Taps:
        """Return the taps of some of the intervals, no more than they need."""
        needed = self.needed[some]
        most = int(needed.max())
        return Taps(self.index[some][..., :most], self.weight[some][..., :most], needed)


def bilinear_taps(
    intervals: NDArray[np.float64],
    count: int,
    length: int,
    *,
    antialias: bool = True,
    whole_pixels: bool = False,
) -> Taps:
    """Return the taps that resample intervals of an axis to ``count`` values each.

    Value i looks at ``start + (i + 0.5) * scale``, where ``scale = (end - start) / count``. A pixel whose centre
    is at distance d from there weighs ``max(0, 1 - d / width)``, where ``width`` is 1, or ``scale`` where an
    antialiased interval shrinks. Pixels outside the axis weigh nothing; the rest is scaled to a sum of 1.

    Args:
        intervals: (G, 2) start and end, pixels, within ``0..length``.
        count: S, how many values each interval becomes.
        length: Pixels of the axis.
        antialias: Widen the filter where an interval shrinks.
        whole_pixels: Truncate the intervals to whole pixels, at least one, and weigh only pixels inside them.
    """
    start, end = intervals[:, 0], intervals[:, 1]
    first, last = np.zeros_like(start), np.full_like(end, length)  # pixels first..last-1 may be seen
    if whole_pixels:
        start = first = np.minimum(np.floor(start), length - 1)
        end = last = np.maximum(np.floor(end), start + 1)
    scale = (end - start) / count  # (G,)
    width = np.maximum(scale, 1) if antialias else np.ones_like(scale)
    needed = np.ceil(2 * width).astype(np.int64)
    centre = start[:, None] + (np.arange(count) + 0.5) * scale[:, None]  # (G, S)
    lowest = np.floor(centre - width[:, None] + 0.5)
    index = lowest[..., None] + np.arange(needed.max())  # (G, S, T)
    weight = 1 - np.abs(index + 0.5 - centre[..., None]) / width[:, None, None]
    seen = (weight > 0) & (index >= first[:, None, None]) & (index < last[:, None, None])
    weight = np.where(seen, weight, 0)
    weight /= weight.sum(axis=2, keepdims=True)
    return Taps(np.clip(index, 0, length - 1).astype(np.int32), weight, needed)
