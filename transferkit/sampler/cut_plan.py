"""Decide how boxes are cut out of an image: which pixels, with what weights, in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transferkit.sampler.taps import Taps, bilinear_taps


@dataclass(frozen=True, eq=False)
class CutPlan:
    """Everything about cutting B boxes but the pixels.

    Boxes are sorted by their left and right edges, so that those which share both are neighbours.

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
