"""Cut boxes out of an image and resize them, as PIL's ``resize(box=...)`` does, many at a time, on any device.

Bilinear resizing is linear and separable: one pass resamples columns, a second one rows, and every value of either
is a weighted sum of a few values before it. That is what ``embedding_bag`` computes, torch's gather-and-sum of table
rows, at the speed of memory. Patches of a grid share their left and right edges, so the first pass is done once for
each pair of edges; the second, which does most of the work, reads and writes whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from transferkit.boxes import as_boxes
from transferkit.errors import ArgumentError, require
from transferkit.sampler.cut_plan import CutPlan, plan_cut
from transferkit.sampler.taps import Taps

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
    on_cpu = image.device.type == "cpu"
    window = _Window.of(image, plan, round_up=not out.is_floating_point())
    strips_at_once = 1 if on_cpu else max(1, _VALUES_AT_ONCE // (window.table.shape[1] * out.shape[3]))
    patches_at_once = max(1, (_VALUES_IN_CACHE if on_cpu else _VALUES_AT_ONCE) // out[0].numel())
    for first in range(0, len(plan.ends), strips_at_once):
        last = min(first + strips_at_once, len(plan.ends))
        strips = window.strips(plan.across[first:last])
        start, stop = int(plan.ends[first - 1]) if first else 0, int(plan.ends[last - 1])
        for begin in range(start, stop, patches_at_once):
            some = slice(begin, min(begin + patches_at_once, stop))
            values = window.patches(strips, plan.edges_of[some] - first, plan.down[plan.rows_of[some]])
            _store(values, plan.order[some], out)


@dataclass(frozen=True, eq=False)
class _Window:
    """The part of an image that all boxes of a plan see.

    Attributes:
        table: (w, C * h), one row for each column of pixels.
        left: The image's column that the window begins at.
        top: The image's row that it begins at.
        channels: C.
        height: h.
    """

    table: Tensor
    left: int
    top: int
    channels: int
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
        part = image[:, top:bottom, left:right].reshape(-1, right - left)  # (C * h, w)
        table = part.to(working).t().contiguous()
        return _Window(table + 0.5 if round_up else table, left, top, image.shape[0], bottom - top)

    def strips(self, across: Taps) -> Tensor:
        """Resample columns between E pairs of edges: (E * C * h, S)."""
        columns = _weighted_rows(self.table, across.index - self.left, across.weight)
        columns = columns.view(*across.index.shape[:2], -1)  # (E, S, C * h)
        if len(columns) == 1:
            return columns[0].t().contiguous()  # torch has a fast transpose for matrices
        return columns.transpose(1, 2).flatten(0, 1)

    def patches(self, strips: Tensor, strip: NDArray[np.int64], down: Taps) -> Tensor:
        """Resample rows of strips: (B * C * S, S). ``strip``, (B,), says from which of them each patch is."""
        plane = strip[:, None] * self.channels + np.arange(self.channels)  # (B, C)
        first = (plane * self.height - self.top).astype(np.int32)
        index = first[..., None, None] + down.index[:, None]  # (B, C, S, T)
        return _weighted_rows(strips, index, np.broadcast_to(down.weight[:, None], index.shape))


def _weighted_rows(table: Tensor, index: NDArray[np.int32], weight: NDArray[np.float64]) -> Tensor:
    """Return the sums over T of ``weight`` times the rows of ``table`` at ``index``, both (..., T)."""
    taps = index.shape[-1]
    weight = weight.astype(np.float64 if table.dtype == torch.float64 else np.float32)
    bags = torch.from_numpy(index.reshape(-1, taps)).to(table.device, non_blocking=True)
    weights = torch.from_numpy(weight.reshape(-1, taps)).to(table.device, non_blocking=True)
    return embedding_bag(bags, table, mode="sum", per_sample_weights=weights)


def _store(values: Tensor, rows: NDArray[np.int64], out: Tensor) -> None:
    """Write patches, (B * C * S, S), to the ``rows`` of ``out``."""
    values = values.view(-1, *out.shape[1:])
    if out.device.type != "cpu":
        out[torch.from_numpy(rows).to(out.device)] = values.to(out.dtype)
        return
    if not out.is_floating_point():
        values = values.to(torch.int16)  # torch converts fast from float to int16, and from there to uint8
    for row, value in zip(rows.tolist(), values, strict=True):
        out[row].copy_(value)


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
    xyxy: NDArray[np.float64] = as_boxes(boxes).double().cpu().numpy()
    width, height = image.shape[2], image.shape[1]
    outside = ((xyxy < 0) | (xyxy > (width, height, width, height))).any(axis=1)
    if outside.any():
        row = int(outside.argmax())
        raise ArgumentError(
            f"boxes must lie inside the image, {width} wide and {height} high, "
            f"got {xyxy[row].tolist()} at row {row} ({int(outside.sum())} such boxes)"
        )
    return xyxy
