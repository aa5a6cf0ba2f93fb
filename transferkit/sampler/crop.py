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
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from transferkit.annotated import as_tensor
from transferkit.boxes import as_boxes, as_size, require_inside
from transferkit.errors import require
from transferkit.sampler._taps import CutPlan, Taps, nearest_pixels, plan_cut

Piece = TypeVar("Piece")


def in_threads(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    """Call ``work`` on each piece, on as many threads as torch has been given, each of which uses one core.

    Torch's own threads meet after every operation, and where other work wants the cores too, each meeting waits until
    the last of them is given one again: cutting 448 patches takes some thousand small operations, and on two crowded
    cores did 80 patches a second so, against 1,000 in this way. Pieces meet once, at the end.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return _in_turn(work, pieces)
    inference = torch.is_inference_mode_enabled()

    def call(piece: Piece) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are modes of a thread
            work(piece)

    for _ in _pool(os.getpid(), threads).map(call, pieces):  # so that an error is raised here
        pass


def _in_turn(work: Callable[[Piece], None], pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        work(piece)


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

_VALUES_IN_WINDOW = 2**27  # half a GiB of float32

_EXTRA = 2  # a row, and a column, of the value outside the image, and one of 0 for surplus taps


Pixels: TypeAlias = "Tensor | NDArray[Any]"

Mode = Literal["bilinear", "nearest"]

_NARROW = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.float16, torch.bfloat16, torch.float32)

_WIDE = (torch.uint32, torch.int32, torch.float64)  # a float32 does not hold all of their values

# Torch indexes few kinds of integers; these have the same bits.
_TWINS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


@torch.no_grad()
def crop_and_resize(
    image: Pixels,
    boxes: Pixels,
    size: int | tuple[int, int],
    antialias: bool = True,
    *,
    whole_pixels: bool = False,
    mode: Mode = "bilinear",
    fill: float | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Cut each box out of the image and resize it.

    Boxes are exact: one from 10.25 to 20.5 is sampled just there, and near its border sees pixels beyond it, as far
    as the image goes. A patch comes out bit for bit the same whichever others are cut in the same call. A pixel that
    is NaN or infinite is seen in the values that it has a weight in, and in no other.

    Args:
        image: (C, H, W) on any device, any number of channels: integers up to 32 bits, floats, or, with
            ``"nearest"``, any real dtype. Of an array that is no tensor, but indexed like NumPy's (a memory map,
            zarr), no more is read than what the boxes see.
        boxes: (B, 4) xyxy, pixels, inside the image unless there is a ``fill``. They are looked at on the cpu, so
            are best kept there.
        size: S, or ``(height, width)``, of a resized patch.
        antialias: Widen the filter where a patch shrinks, as PIL does; without it fine patterns alias.
        whole_pixels: Cut first, then resize: edges are truncated to whole pixels, and nothing beyond them is seen.
        mode: ``"bilinear"``, computed in float32 (integers of 32 bits and float64 in float64) and rounded for
            integers, or ``"nearest"``, the pixel under each value's center, for label maps.
        fill: The value of pixels outside the image, as far as a box goes there; ``None`` refuses such boxes.
        dtype: Of the result; the image's own by default. Floats keep the image's range, 0..255 for uint8.
        out: (B, C, S, S), filled and returned instead of a new tensor.

    Returns:
        (B, C, S, S) on the image's device.

    Raises:
        ArgumentError: Shapes or types other than these, a box that leaves the image without a ``fill``, or a ``fill``
            that the image's dtype does not have.

    Example:
        >>> image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
        >>> crop_and_resize(image, torch.tensor([[0.5, 1.0, 2.5, 3.0]]), 2)
        tensor([[[[ 5,  6],
                  [ 9, 10]]]], dtype=torch.uint8)
        >>> crop_and_resize(image, torch.tensor([[2.0, 3.0, 5.0, 5.0]]), (2, 3), fill=99)
        tensor([[[[14, 15, 99],
                  [99, 99, 99]]]], dtype=torch.uint8)
    """
    image = as_tensor("image", image) if isinstance(image, Tensor) else image
    like, size = _kind(image, mode, fill), as_size("size", size)
    xyxy = as_boxes(boxes).double().cpu()
    image_size = (int(image.shape[1]), int(image.shape[2]))
    if fill is None:
        require_inside(xyxy, image_size)
    shape = (len(xyxy), int(image.shape[0]), *size)
    if out is None:
        out = _empty(shape, dtype or like.dtype, like.device)
    require(tuple(out.shape) == shape, "out", f"a tensor of shape {shape}", tuple(out.shape))
    fits = out.is_floating_point() or out.dtype == like.dtype
    require(fits, "dtype", f"floating, or the image's own {like.dtype}", out.dtype)
    own = bool((xyxy % 1 == 0).all() and (xyxy[:, 2:] - xyxy[:, :2] == xyxy.new_tensor(size[::-1])).all())
    if mode == "nearest" or own:  # whole pixels at their own size are themselves
        _pick(image, xyxy.numpy(), whole_pixels, fill or 0, out)
        return out
    for first in range(0, len(xyxy), _BOXES_AT_ONCE):
        some = slice(first, first + _BOXES_AT_ONCE)
        plan = plan_cut(xyxy.numpy()[some], image_size, size, antialias=antialias, whole_pixels=whole_pixels)
        _cut(image, fill or 0, plan, out[some])
    return out


def _kind(image: Pixels, mode: Mode, fill: float | None) -> Tensor:
    """Return an empty tensor of the image's dtype and device, or say why it cannot be cut so."""
    require(mode in ("bilinear", "nearest"), "mode", "'bilinear' or 'nearest'", mode)
    known = hasattr(image, "shape") and hasattr(image, "dtype")
    require(known, "image", "a tensor or an array, (C, H, W)", type(image))
    like = image.new_empty(0) if isinstance(image, Tensor) else as_tensor("image", np.empty(0, image.dtype))
    kind, shape = like.dtype, tuple(image.shape)
    fits = len(shape) == 3 and 0 not in shape and not kind.is_complex
    require(fits, "image", "(C, H, W), real and not empty", (shape, kind))
    fits = mode == "nearest" or kind in (*_NARROW, *_WIDE)
    require(fits, "image", "integers up to 32 bits, or floats (cut labels and flags with mode='nearest')", kind)
    one = fill is None or np.ndim(fill) == 0
    exact = one and (fill is None or kind.is_floating_point or torch.tensor(fill).to(kind).item() == fill)
    require(exact, "fill", f"one value of the image's {kind}", fill)
    return like


def _region(image: Pixels, rows: slice, columns: slice) -> Tensor:
    """Return a part of the image, (C, h, w)."""
    part = image[:, rows, columns]
    return part if isinstance(part, Tensor) else as_tensor("image", part)


def _pick(image: Pixels, boxes: NDArray[np.float64], whole_pixels: bool, fill: float, out: Tensor) -> None:
    """Fill ``out``, (B, C, S, S), with the pixels under the values' centers."""
    height, width = image.shape[1:]
    rows = nearest_pixels(boxes[:, 1::2], out.shape[2], height, whole_pixels)
    columns = nearest_pixels(boxes[:, 0::2], out.shape[3], width, whole_pixels)

    def pick(place: int) -> None:
        y, x = rows[place], columns[place]  # ascending
        down, across = slice(*np.searchsorted(y, (0, height))), slice(*np.searchsorted(x, (0, width)))
        y, x, patch = y[down], x[across], out[place]
        if patch.shape[1:] != (len(y), len(x)):
            patch.fill_(fill)
        if len(y) and len(x):
            part = _region(image, slice(int(y[0]), int(y[-1]) + 1), slice(int(x[0]), int(x[-1]) + 1))
            if (np.diff(y) != 1).any() or (
                np.diff(x) != 1
            ).any():  # several times faster where each is the next
                index_y, index_x = (torch.from_numpy(index - index[0]).to(part.device) for index in (y, x))
                twin = part.view(_TWINS.get(part.dtype, part.dtype))
                part = twin[:, index_y[:, None], index_x].view(part.dtype)
            patch[:, down, across] = part

    in_threads(pick, range(len(boxes)))


def _cut(image: Pixels, fill: float, plan: CutPlan, out: Tensor) -> None:
    """Fill ``out``, (B, C, S, S), as planned: strip by strip, and for each the patches that are cut from it."""
    on_cpu = out.device.type == "cpu"
    spread = in_threads if on_cpu else _in_turn
    islands = plan.islands(1 if on_cpu else _VALUES_AT_ONCE, _VALUES_IN_WINDOW // int(image.shape[0]))
    if islands:  # in one window all that lies between them would be resampled too
        spread(lambda some: _cut(image, fill, plan.part(some), out), islands)
        return
    window = _Window.of(image, fill, plan, round_up=not out.is_floating_point())
    across = _Filter.of(plan.across, window.left, window.width, window.table)
    down = _Filter.of(plan.down, window.top, window.height, window.table)
    stride = window.height + _EXTRA
    strip_values, patch_values = window.table[0].numel() * out.shape[3], out[0].numel()
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
            rows = down(strips, plan.rows_of[some], (plan.edges_of[some] - first) * stride)
            _store(rows, plan.order[some], out)

    spread(cut, range(0, len(plan.ends), strips_at_once))


class _Filter:
    """Taps on the device of a table, ready to be applied to it."""

    def __init__(self, index: Tensor, weight: Tensor, needed: NDArray[np.int64]) -> None:
        self._index, self._weight, self._needed = index, weight, needed

    @staticmethod
    def of(taps: Taps, start: int, length: int, table: Tensor) -> _Filter:
        """Make ready the taps of an axis of which ``table`` has ``length`` pixels, from ``start`` on."""
        index = np.where(taps.index < 0, length - 1 - taps.index, taps.index - np.int32(start))
        weight = torch.from_numpy(taps.weight).to(table)
        return _Filter(torch.from_numpy(index).to(table.device), weight, taps.needed)

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
    """The part of an image that all boxes of a plan see, with a row and a column of ``fill``, and of 0, at the end.

    Attributes:
        table: (w + 2, (h + 2) * C), one row for each column of pixels.
        left: The image's column that the window begins at.
        top: The image's row that it begins at.
        width: w.
        height: h.
    """

    table: Tensor
    left: int
    top: int
    width: int
    height: int

    @staticmethod
    def of(image: Pixels, fill: float, plan: CutPlan, *, round_up: bool) -> _Window:
        """Take the window out of the image.

        With ``round_up`` all pixels are half too large. Weights sum to 1, so that half is still there when a patch
        is done, and to cut off its fraction rounds it.
        """
        (left, right), (top, bottom) = plan.across.extent(), plan.down.extent()
        part = _region(image, slice(top, bottom), slice(left, right)).permute(2, 1, 0)  # (w, h, C)
        width, height, channels = part.shape
        shape = (width + _EXTRA, height + _EXTRA, channels)
        working = torch.float64 if part.dtype in _WIDE else torch.float32
        table = torch.empty(shape, dtype=working, device=part.device)
        table[:width, :height] = part
        table[width:] = table[:, height:] = fill
        if round_up:
            table += 0.5
        table[width + 1] = table[:, height + 1] = 0
        return _Window(table.flatten(1), left, top, width, height)

    def strips(self, across: _Filter, which: NDArray[np.int64]) -> Tensor:
        """Resample columns between E pairs of edges: (E * h, C * S)."""
        columns = across(self.table, which)
        if len(which) == 1:
            rows = columns.t().contiguous()  # torch has a fast transpose for matrices
        else:
            rows = columns.view(len(which), -1, self.table.shape[1]).transpose(1, 2).contiguous()
        return rows.view(len(which) * (self.height + _EXTRA), -1)


def _store(values: Tensor, places: NDArray[np.int64], out: Tensor) -> None:
    """Write patches, (B * S, C * S), to their ``places`` in ``out``."""
    count, channels, height, width = len(places), *out.shape[1:]
    if out.dtype.is_signed and not out.is_floating_point():  # below 0 the fraction would be cut off upwards
        values = values.floor_()
    patches = values.view(count, height, channels, width).transpose(1, 2)
    if out.device.type != "cpu":
        twin = _TWINS.get(out.dtype, out.dtype)
        out.view(twin)[torch.from_numpy(places).to(out.device)] = patches.to(out.dtype).view(twin)
        return
    if out.dtype in (torch.uint8, torch.uint16):  # NumPy converts in one pass over memory where torch takes two
        target, source = out.numpy(), patches.numpy()
        for place, patch in zip(places.tolist(), source, strict=True):
            np.copyto(target[place], patch, casting="unsafe")
        return
    for place, value in zip(places.tolist(), patches, strict=True):
        out[place].copy_(value)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or 0 in shape:
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks the system for large pages. With small ones, first touching the memory of a few hundred patches
    # takes as long as computing them.
    item = torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(np.empty((*shape[:-1], shape[-1] * item), dtype=np.uint8)).view(dtype)
