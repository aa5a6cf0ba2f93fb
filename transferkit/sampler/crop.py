"""Cut boxes out of an image and resize them, as PIL's ``resize(box=...)`` does, many at a time, on any device.

Bilinear resizing is linear and separable: one pass resamples columns, a second one rows, and every value of either
is a weighted sum of a few values before it. That is what ``embedding_bag`` computes, torch's gather-and-sum of table
rows, at the speed of memory. Patches of a grid share their left and right edges, so the first pass is done once for
each pair of edges; the second, which does most of the work, reads and writes whole rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from transferkit.boxes import as_boxes, require_inside
from transferkit.errors import ArgumentError, require

Piece = TypeVar("Piece")


def in_threads(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Call ``work`` on each piece, on as many threads as torch has been given, each of which uses one core.

    Torch's own threads meet after every operation, and where other work wants the cores too, each meeting waits until
    the last of them is given one again: cutting 448 patches takes some thousand small operations, and on two crowded
    cores did 80 patches a second so, against 1,000 in this way. Pieces meet once, at the end.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for piece in pieces:
            work(piece)
        return
    inference = torch.is_inference_mode_enabled()

    def call(piece: Piece) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are modes of a thread
            work(piece)

    for _ in _pool(os.getpid(), threads).map(call, pieces):  # so that an error is raised here
        pass


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process (a forked one inherits none) that torch does not divide further."""
    all_there = Barrier(threads)

    def alone() -> None:
        torch.get_num_threads()  # else torch sets this thread's number later, and to the process's
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(threads, "transferkit-cut")
    for begun in [pool.submit(alone) for _ in range(threads)]:
        begun.result()
    torch.set_num_threads(threads)  # new threads of others take what was set last
    return pool


# How much is worked on at a time: on the cpu so little that it stays in the cache, on other devices so much that
# each call is worth its launch.
_BOXES_AT_ONCE = 1024

_VALUES_IN_CACHE = 2**19

_VALUES_AT_ONCE = 2**26


@torch.no_grad()
def crop_and_resize(
    image: Tensor,
    boxes: Tensor,
    size: int | tuple[int, int],
    antialias: bool = True,
    *,
    whole_pixels: bool = False,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Cut each box out of the image and resize it bilinearly.

    Boxes are exact: one from 10.25 to 20.5 is sampled just there, and near its border sees pixels beyond it, as far
    as the image goes. A patch comes out bit for bit the same whichever others are cut in the same call.

    Args:
        image: (C, H, W), uint8 or floating, on any device.
        boxes: (B, 4) xyxy, pixels, inside the image. They are looked at on the cpu, so are best kept there.
        size: S, or ``(height, width)``, of a resized patch.
        antialias: Widen the filter where a patch shrinks, as PIL does; without it fine patterns alias.
        whole_pixels: Cut first, then resize: edges are truncated to whole pixels, and nothing beyond them is seen.
        dtype: Of the result; the image's own by default. Floats keep the image's range, 0..255 for uint8.
        out: (B, C, S, S), filled and returned instead of a new tensor.

    Returns:
        (B, C, S, S) on the image's device.

    Raises:
        ArgumentError: Shapes or types other than these, or a box that leaves the image.

    Example:
        >>> image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
        >>> crop_and_resize(image, torch.tensor([[0.5, 1.0, 2.5, 3.0]]), 2)
        tensor([[[[ 5,  6],
                  [ 9, 10]]]], dtype=torch.uint8)
    """
    xyxy = _checked(image, boxes)
    size = (size, size) if isinstance(size, int) else size
    require(min(size) >= 1, "size", "1 or more", size)
    shape = (len(xyxy), image.shape[0], *size)
    if out is None:
        out = _empty(shape, dtype or image.dtype, image.device)
    require(tuple(out.shape) == shape, "out", f"a tensor of shape {shape}", tuple(out.shape))
    fits = out.is_floating_point() or out.dtype == image.dtype
    require(fits, "dtype", f"floating, or the image's own {image.dtype}", out.dtype)
    image_size = (image.shape[1], image.shape[2])
    for first in range(0, len(xyxy), _BOXES_AT_ONCE):
        some = slice(first, first + _BOXES_AT_ONCE)
        plan = plan_cut(xyxy[some], image_size, size, antialias=antialias, whole_pixels=whole_pixels)
        _cut(image, plan, out[some])
    return out


def _cut(image: Tensor, plan: CutPlan, out: Tensor) -> None:
    """Fill ``out``, (B, C, S, S), as planned: strip by strip, and for each the patches that are cut from it."""
    window = _Window.of(image, plan, round_up=not out.is_floating_point())
    across = _Filter.of(plan.across, window.left, window.table)
    down = _Filter.of(plan.down, window.top, window.table)
    strip_values, patch_values = window.table[0].numel() * out.shape[3], out[0].numel()
    on_cpu = image.device.type == "cpu"
    if on_cpu:
        strips_at_once, patches_at_once = 1, max(1, _VALUES_IN_CACHE // patch_values)
    else:
        strips_at_once, patches_at_once = (max(1, _VALUES_AT_ONCE // n) for n in (strip_values, patch_values))

    def cut(first: int) -> None:
        last = min(first + strips_at_once, len(plan.ends))
        strips = window.strips(across, np.arange(first, last))
        start, stop = int(plan.ends[first - 1]) if first else 0, int(plan.ends[last - 1])
        for begin in range(start, stop, patches_at_once):
            some = slice(begin, min(begin + patches_at_once, stop))
            rows = down(strips, plan.rows_of[some], (plan.edges_of[some] - first) * window.height)
            _store(rows, plan.order[some], out)

    every = range(0, len(plan.ends), strips_at_once)
    if on_cpu:
        in_threads(cut, every)
    else:
        for first in every:
            cut(first)


class _Filter:
    """Taps on the device of a table, ready to be applied to it."""

    def __init__(self, index: Tensor, weight: Tensor, needed: NDArray[np.int64]) -> None:
        self._index, self._weight, self._needed = index, weight, needed

    @staticmethod
    def of(taps: Taps, start: int, table: Tensor) -> _Filter:
        """Make ready the taps of an axis whose pixel ``start`` is the first of ``table``."""
        index = torch.from_numpy(taps.index - np.int32(start)).to(table.device)
        return _Filter(index, torch.from_numpy(taps.weight).to(table), taps.needed)

    def __call__(self, table: Tensor, which: NDArray[np.int64], offset: NDArray[np.int64] | int = 0) -> Tensor:
        """Return the weighted sums of rows of ``table``, (n * S, D), for n of the intervals, ``which``.

        Rows are counted from ``offset``, one for all or (n,).
        """
        taps = int(self._needed[which].max())
        some = torch.from_numpy(which).to(table.device)
        index = self._index[some, :, :taps]
        if isinstance(offset, np.ndarray) and offset.any():
            index = index + torch.from_numpy(offset.astype(np.int32)).to(table.device)[:, None, None]
        weight = self._weight[some, :, :taps].reshape(-1, taps)
        return embedding_bag(index.reshape(-1, taps), table, mode="sum", per_sample_weights=weight)


@dataclass(frozen=True, eq=False)
class _Window:
    """The part of an image that all boxes of a plan see.

    Attributes:
        table: (w, h * C), one row for each column of pixels.
        left: The image's column that the window begins at.
        top: The image's row that it begins at.
        height: h.
    """

    table: Tensor
    left: int
    top: int
    height: int

    @staticmethod
    def of(image: Tensor, plan: CutPlan, *, round_up: bool) -> _Window:
        """Take the window out of the image.

        With ``round_up`` all pixels are half too large. Weights sum to 1, so that half is still there when a patch
        is done, and to cut off its fraction rounds it.
        """
        left, right = int(plan.across.index.min()), int(plan.across.index.max()) + 1
        top, bottom = int(plan.down.index.min()), int(plan.down.index.max()) + 1
        working = torch.float64 if image.dtype == torch.float64 else torch.float32
        part = image[:, top:bottom, left:right].permute(2, 1, 0).to(working)  # (w, h, C)
        table = part.reshape(right - left, -1)
        return _Window(table + 0.5 if round_up else table.contiguous(), left, top, bottom - top)

    def strips(self, across: _Filter, which: NDArray[np.int64]) -> Tensor:
        """Resample columns between E pairs of edges: (E * h, C * S)."""
        columns = across(self.table, which)
        if len(which) == 1:
            rows = columns.t().contiguous()  # torch has a fast transpose for matrices
        else:
            rows = columns.view(len(which), -1, self.table.shape[1]).transpose(1, 2).contiguous()
        return rows.view(len(which) * self.height, -1)


def _store(values: Tensor, places: NDArray[np.int64], out: Tensor) -> None:
    """Write patches, (B * S, C * S), to their ``places`` in ``out``."""
    count, channels, height, width = len(places), *out.shape[1:]
    patches = values.view(count, height, channels, width).transpose(1, 2)
    if out.device.type != "cpu":
        out[torch.from_numpy(places).to(out.device)] = patches.to(out.dtype)
        return
    if out.dtype == torch.uint8:  # NumPy converts in one pass over memory where torch takes two
        target, source = out.numpy(), patches.numpy()
        for place, patch in zip(places.tolist(), source, strict=True):
            np.copyto(target[place], patch, casting="unsafe")
        return
    for place, value in zip(places.tolist(), patches, strict=True):
        out[place].copy_(value)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks the system for large pages. With small ones, first touching the memory of a few hundred patches
    # takes as long as computing them.
    item = torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(np.empty((*shape[:-1], shape[-1] * item), dtype=np.uint8)).view(dtype)


def _checked(image: Tensor, boxes: Tensor) -> NDArray[np.float64]:
    """Return the boxes as an array."""
    if image.ndim != 3 or not image.numel() or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ArgumentError(
            f"image must be (C, H, W), uint8 or floating, and not empty, got {tuple(image.shape)} {image.dtype}"
        )
    xyxy = as_boxes(boxes).double().cpu()
    require_inside(xyxy, (image.shape[1], image.shape[2]))
    return xyxy.numpy()


# Resampling: which pixels an output pixel is made of, and how much of each.


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
