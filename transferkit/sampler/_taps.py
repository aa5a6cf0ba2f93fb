"""Which pixels a resized patch is made of, and how much of each: all about cutting but the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Reals: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Taps:
    """For G intervals resampled to S values each, the T pixels that every value is a weighted mean of.

    NumPy, because these are small arrays, on which torch spends most of its time in starting.

    Attributes:
        index: (G, S, T) int32, pixels of the axis; -1 for one outside the image, -2 for a surplus tap.
        weight: (G, S, T) float64, summing to 1 over T; 0 for surplus taps.
        needed: (G,) how many of the T each interval has use for.
        reach: (G, 2) int64: the pixels that it sees, of those in the image, lie from here to there.
    """

    index: NDArray[np.int32]
    weight: Reals
    needed: NDArray[np.int64]
    reach: NDArray[np.int64]

    def extent(self) -> tuple[int, int]:
        """Return where the pixels begin and end that any interval sees."""
        return int(self.reach[:, 0].min()), int(self.reach[:, 1].max())

    def some(self, which: NDArray[np.int64]) -> Taps:
        """Return the taps of some intervals."""
        most = int(self.needed[which].max())
        index, weight = self.index[which, :, :most], self.weight[which, :, :most]
        return Taps(index, weight, self.needed[which], self.reach[which])


def _bounds(intervals: Reals, length: int, whole_pixels: bool) -> tuple[Reals, Reals, Reals, Reals]:
    """Return where intervals start and end, and which pixels may be seen: ``first..last-1``."""
    start, end = intervals[:, 0], intervals[:, 1]
    first, last = np.minimum(np.floor(start), 0), np.maximum(np.ceil(end), length)
    if whole_pixels:
        start = first = np.minimum(np.floor(start), last - 1)
        end = last = np.maximum(np.floor(end), start + 1)
    return start, end, first, last


def nearest_pixels(intervals: Reals, count: int, length: int, whole_pixels: bool) -> NDArray[np.int64]:
    """Return the (G, S) pixels in which the centers of values lie."""
    start, end, first, last = _bounds(intervals, length, whole_pixels)
    center = start[:, None] + (np.arange(count) + 0.5) * ((end - start) / count)[:, None]
    return np.clip(np.floor(center), first[:, None], last[:, None] - 1).astype(np.int64)


def bilinear_taps(
    intervals: Reals,
    count: int,
    length: int,
    *,
    antialias: bool = True,
    whole_pixels: bool = False,
) -> Taps:
    """Return the taps that resample intervals of an axis to ``count`` values each.

    Value i looks at ``start + (i + 0.5) * scale``, where ``scale = (end - start) / count``. A pixel whose center
    is at distance d from there weighs ``max(0, 1 - d / width)``, where ``width`` is 1, or ``scale`` where an
    antialiased interval shrinks. Pixels outside both axis and interval weigh nothing; the rest is scaled to 1.

    Args:
        intervals: (G, 2) start and end, pixels.
        count: S, how many values each interval becomes.
        length: Pixels of the axis.
        antialias: Widen the filter where an interval shrinks.
        whole_pixels: Truncate the intervals to whole pixels, at least one, and weigh only pixels inside them.
    """
    start, end, first, last = _bounds(intervals, length, whole_pixels)
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
    index = np.where(seen, index, -2)
    if (first < 0).any() or (last > length).any():
        index = np.where(seen & ((index < 0) | (index >= length)), -1, index)
    low = np.clip(lowest[:, 0], 0, length - 1)
    reach = np.stack([low, np.clip(lowest[:, -1] + needed, low + 1, length)], axis=1)
    return Taps(index.astype(np.int32), weight, needed, reach.astype(np.int64))


@dataclass(frozen=True, eq=False)
class CutPlan:
    """Everything about cutting B boxes but the pixels.

    Boxes are sorted by their left and right edges, so that those which share both are neighbors, and then by rows.

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

    def islands(self, least: int, most: int) -> list[slice]:
        """Return the runs of boxes that hang together in a strip, where each should have a window of its own.

        That is where it is far less work than one window for all, unless that is less than ``least`` values; and
        where one window would have more than ``most`` pixels. Else there are none.
        """
        if len(self.order) == 1:
            return []
        (left, right), (above, below) = self.across.extent(), self.down.extent()
        top, bottom = self.down.reach[self.rows_of].T + self.edges_of * (below + 1)  # strip under strip
        lowest = np.maximum.accumulate(bottom)
        begins = np.flatnonzero(np.append(True, top[1:] > lowest[:-1]))
        ends = np.append(begins[1:], len(top))
        resampled = self.across.index.shape[1] * self.across.needed  # for each row of pixels
        of_row = np.diff(self.across.reach)[:, 0] + resampled
        work = int((lowest[ends - 1] - top[begins]) @ of_row[self.edges_of[begins]])
        together = (below - above) * (right - left + int(resampled.sum()))
        large = (below - above) * (right - left) > most
        if len(begins) == 1 or together < least or (2 * work > together and not large):
            return []
        return [slice(*each) for each in zip(begins.tolist(), ends.tolist(), strict=True)]

    def part(self, some: slice) -> CutPlan:
        """Return the plan of a run of boxes that share their left and right edges."""
        rows, rows_of = np.unique(self.rows_of[some], return_inverse=True)
        across = self.across.some(self.edges_of[some][:1])
        ends = np.array([len(rows_of)])
        return CutPlan(self.order[some], 0 * rows_of, ends, across, rows_of, self.down.some(rows))


def plan_cut(
    boxes: Reals,
    image_size: tuple[int, int],
    size: tuple[int, int],
    *,
    antialias: bool = True,
    whole_pixels: bool = False,
) -> CutPlan:
    """Plan to cut boxes, (B, 4) xyxy, out of an image of ``(height, width)`` and resize them to ``size``."""
    edges, edges_of = _distinct(boxes[:, 0::2])
    rows, rows_of = _distinct(boxes[:, 1::2])
    order = np.lexsort((rows_of, edges_of))
    return CutPlan(
        order=order,
        edges_of=edges_of[order],
        ends=np.bincount(edges_of).cumsum(),
        across=bilinear_taps(edges, size[1], image_size[1], antialias=antialias, whole_pixels=whole_pixels),
        rows_of=rows_of[order],
        down=bilinear_taps(rows, size[0], image_size[0], antialias=antialias, whole_pixels=whole_pixels),
    )


def _distinct(pairs: Reals) -> tuple[Reals, NDArray[np.int64]]:
    """Return the different rows of ``pairs``, (B, 2), and which of them each row is."""
    names = pairs[:, 0] + 1j * pairs[:, 1]  # NumPy sorts complex numbers, far faster than rows
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    return pairs[first], which
