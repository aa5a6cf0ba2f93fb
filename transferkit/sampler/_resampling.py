"""Decide how boxes are cut out of an image: which pixels, with what weights, in which order."""

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


def bilinear_taps(
    intervals: NDArray[np.float64],
    count: int,
    length: int,
    *,
    antialias: bool = True,
    whole_pixels: bool = False,
) -> Taps:
    """Return the taps that resample intervals of an axis to ``count`` values each.

    Value i looks at ``start + (i + 0.5) * scale``, where ``scale = (end - start) / count``. A pixel whose center
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
    # The filter is a triangle of half-width 1 in source pixels; where a box shrinks, of one output pixel,
    # so that every source pixel has a say and fine patterns do not alias. PIL's resize(box=...) does the same.
    scale = (end - start) / count  # (G,)
    width = np.maximum(scale, 1) if antialias else np.ones_like(scale)
    needed = np.ceil(2 * width).astype(np.int64)  # source pixels under one triangle, wherever its center falls
    # Value i is centered in its share of the interval; pixel j has its center at j + 0.5.
    center = start[:, None] + (np.arange(count) + 0.5) * scale[:, None]  # (G, S)
    lowest = np.floor(center - width[:, None] + 0.5)
    index = lowest[..., None] + np.arange(needed.max())  # (G, S, T)
    weight = 1 - np.abs(index + 0.5 - center[..., None]) / width[:, None, None]
    seen = (weight > 0) & (index >= first[:, None, None]) & (index < last[:, None, None])
    # Outside the image there is nothing to weigh: what remains is scaled to 1, which leaves an even image even.
    weight = np.where(seen, weight, 0)
    weight /= weight.sum(axis=2, keepdims=True)
    return Taps(np.clip(index, 0, length - 1).astype(np.int32), weight, needed)


@dataclass(frozen=True, eq=False)
class CutPlan:
    """Everything about cutting B boxes but the pixels.

    Boxes are sorted by their left and right edges, so that those which share both are neighbors.

    Attributes:
        order: (B,) the boxes in the order in which they are cut.
        edges_of: (B,) in that order, which of the E pairs of left and right edges each box has.
        ends: (E,) how many boxes come before the end of each pair's.
        across: Taps along x of each pair of left and right edges.
        rows_of: (B,) in that order, which of the R pairs of top and bottom each box has.
        down: Taps along y of each pair of top and bottom.
    """

    order: NDArray[np.int64]
    edges_of: NDArray[np.int64]
    ends: NDArray[np.int64]
    across: Taps
    rows_of: NDArray[np.int64]
    down: Taps


def plan_cut(
    boxes: NDArray[np.float64],
    image_size: tuple[int, int],
    size: tuple[int, int],
    *,
    antialias: bool = True,
    whole_pixels: bool = False,
) -> CutPlan:
    """Plan to cut boxes, (B, 4) xyxy, out of an image of ``(height, width)`` and resize them to ``size``."""
    edges, edges_of = _distinct(boxes[:, 0::2])
    rows, rows_of = _distinct(boxes[:, 1::2])
    order = np.argsort(edges_of, kind="stable")
    return CutPlan(
        order=order,
        edges_of=edges_of[order],
        ends=np.bincount(edges_of).cumsum(),
        across=bilinear_taps(edges, size[1], image_size[1], antialias=antialias, whole_pixels=whole_pixels),
        rows_of=rows_of[order],
        down=bilinear_taps(rows, size[0], image_size[0], antialias=antialias, whole_pixels=whole_pixels),
    )


def _distinct(pairs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the different rows of ``pairs``, (B, 2), and which of them each row is."""
    names = pairs[:, 0] + 1j * pairs[:, 1]  # NumPy sorts complex numbers, far faster than rows
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    return pairs[first], which
