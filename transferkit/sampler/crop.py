"""Cut boxes out of an image and resize them, as PIL's ``resize(box=...)`` does, many at a time, on any device.

Bilinear resizing is linear and separable: one pass resamples columns, a second one rows, and every value of
either is a weighted sum of a few values before it. That is what ``embedding_bag`` computes, torch's
gather-and-sum of table rows, at the speed of memory. Patches of a grid share their left and right edges, so the
first pass is done once for each pair of edges; the second, which does most of the work, reads and writes whole
rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from transferkit.boxes import as_boxes
from transferkit.errors import ArgumentError, require
from transferkit.sampler.taps import Taps, bilinear_taps

# Values worked on at a time. On the cpu so few that they stay in its cache; on other devices so many that each
# call is worth its launch.
_VALUES_AT_ONCE_CPU = 2**19
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

    Boxes are exact: one from 10.25 to 20.5 is sampled just there, and near its border sees pixels beyond it, as
    far as the image goes. A patch comes out bit for bit the same whichever others are cut in the same call.

    Args: image: (C, H, W), uint8 or floating, on any device. boxes: (B, 4) xyxy, pixels, inside the image. They
        are looked at on the cpu, so are best kept there. size: S, or ``(height, width)``, of a resized patch.
        antialias: Widen the filter where a patch shrinks, as PIL does; without it fine patterns alias.
        whole_pixels: Cut first, then resize: edges are truncated to whole pixels and nothing beyond them is
        seen. dtype: Of the result; the image's own by default. Floats keep the image's range, 0..255 for uint8.
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
    boxes = _checked(image, boxes)
    height, width = (size, size) if isinstance(size, int) else size
    require(height >= 1 and width >= 1, "size", "1 or more", size)
    shape = (len(boxes), image.shape[0], height, width)
    if out is None:
        out = torch.empty(shape, dtype=dtype or image.dtype, device=image.device)
    require(tuple(out.shape) == shape, "out", f"a tensor of shape {shape}", tuple(out.shape))
    require(
        out.is_floating_point() or out.dtype == image.dtype, "dtype", "floating or the image's own", out.dtype
    )

    at_once = _VALUES_AT_ONCE_CPU if image.device.type == "cpu" else _VALUES_AT_ONCE
    edges, edge_of = torch.unique(boxes[:, 0::2], dim=0, return_inverse=True)  # (E, 2) left and right
    by_edge = torch.argsort(edge_of, stable=True)
    ends = torch.bincount(edge_of, minlength=len(edges)).cumsum(0).tolist()
    edges_at_once = max(1, at_once // (image.shape[0] * image.shape[1] * width))
    patches_at_once = max(1, at_once // (image.shape[0] * height * width))
    for first in range(0, len(edges), edges_at_once):
        last = min(first + edges_at_once, len(edges))
        rows = by_edge[ends[first - 1] if first else 0 : ends[last - 1]]
        down = bilinear_taps(
            boxes[rows, 1::2], height, image.shape[1], antialias=antialias, whole_pixels=whole_pixels
        )
        across = bilinear_taps(
            edges[first:last], width, image.shape[2], antialias=antialias, whole_pixels=whole_pixels
        )
        strips = _resample_columns(image, across, down, round_up=not out.is_floating_point())
        for some in torch.split(torch.arange(len(rows)), patches_at_once):
            values = _resample_rows(
                strips, edge_of[rows[some]] - first, Taps(down.index[some], down.weight[some])
            )
            _store(values, rows[some], out)
    return out


class _Strips(NamedTuple):
    """An image whose columns are resampled between E pairs of edges.

    Attributes:
        table: (E * C * h, S): row (e, c, y) is a resized row of the image.
        channels: C.
        top: Which row of the image the strips begin at.
        height: h, how many rows of the image they hold.
    """

    table: Tensor
    channels: int
    top: int
    height: int


def _resample_columns(image: Tensor, across: Taps, down: Taps, *, round_up: bool) -> _Strips:
    """Resample the part of the image that the patches see, between each pair of edges."""
    left, right = int(across.index.min()), int(across.index.max()) + 1
    top, bottom = int(down.index.min()), int(down.index.max()) + 1
    part = image[:, top:bottom, left:right].reshape(-1, right - left)  # (C * h, w)
    working = torch.float64 if image.dtype == torch.float64 else torch.float32
    table = part.to(working).t().contiguous()  # (w, C * h)
    columns = _weighted_rows(table, across.index - left, across.weight)  # (E, S, C * h)
    if len(columns) == 1:
        strips = columns[0].t().contiguous()  # torch has a fast transpose for two dimensions
    else:
        strips = columns.transpose(1, 2).reshape(-1, columns.shape[1])
    if round_up:
        strips += 0.5  # weights sum to 1, so this half is still there at the end, where the rest is cut off
    return _Strips(strips, image.shape[0], top, bottom - top)


def _resample_rows(strips: _Strips, edge: Tensor, down: Taps) -> Tensor:
    """Resample strips to patches, (B, C, S, S); ``edge``, (B,), says from which pair of edges each patch is."""
    plane = edge[:, None] * strips.channels + torch.arange(strips.channels)  # (B, C)
    index = (plane * strips.height - strips.top)[..., None, None] + down.index[:, None]  # (B, C, S, T)
    weight = down.weight[:, None].expand(-1, strips.channels, -1, -1)
    return _weighted_rows(strips.table, index, weight)


def _weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Return the sum over T of ``weight`` times the rows of ``table`` at ``index``, both (..., T)."""
    bags = index.reshape(-1, index.shape[-1]).to(table.device, torch.int32)
    weights = weight.reshape(bags.shape).to(table)
    sums = embedding_bag(bags, table, mode="sum", per_sample_weights=weights)
    return sums.reshape(*index.shape[:-1], table.shape[1])


def _store(values: Tensor, rows: Tensor, out: Tensor) -> None:
    if not out.is_floating_point():
        values = values.to(torch.int16)  # torch has a fast conversion from float to int16, and on to uint8
    for row, value in zip(rows.tolist(), values, strict=True):
        out[row].copy_(value)


def _checked(image: Tensor, boxes: Tensor) -> Tensor:
    """Return the boxes as float64 on the cpu."""
    if image.ndim != 3 or not image.numel() or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ArgumentError(
            f"image must be (C, H, W), uint8 or floating, and not empty, got {tuple(image.shape)} {image.dtype}"
        )
    boxes = as_boxes(boxes).double().cpu()
    limit = boxes.new_tensor([image.shape[2], image.shape[1]]).repeat(2)
    outside = ((boxes < 0) | (boxes > limit)).any(dim=1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ArgumentError(
            f"boxes must lie inside the image, {image.shape[2]} wide and {image.shape[1]} high, "
            f"got {boxes[row].tolist()} at row {row} ({int(outside.sum())} such boxes)"
        )
    return boxes
