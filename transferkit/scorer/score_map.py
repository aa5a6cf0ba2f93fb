"""Where in an image a class is seen: patch scores spread over the pixels, and what can be read off them."""

from __future__ import annotations

import torch
from torch import Tensor

from transferkit.errors import require

# Pixels whose scores differ by less than this share of the maximum are equally high: the same patches were
# summed in another order.
_LEVEL = 1e-9


def score_map(probs: Tensor, boxes: Tensor, image_size: tuple[int, int], exponent: float = 5) -> Tensor:
    """Return, for every pixel, the mean of ``p ** exponent`` over the patches that cover its centre.

    The mean rather than the sum: the middle of an image lies in more patches than its rim. Each patch adds its
    score to the four corners of its rectangle, and two cumulative sums fill all rectangles at once.

    Args:
        probs: (P, K) probabilities.
        boxes: (P, 4) xyxy, pixels; need not lie on whole pixels.
        image_size: ``(height, width)``, pixels.
        exponent: Positive and finite.

    Returns:
        (K, H, W) float64; 0 where no patch reaches.

    Raises:
        ArgumentError: One box per patch is not given, or an exponent out of range.
    """
    require(boxes.shape == (len(probs), 4), "boxes", f"({len(probs)}, 4), one per patch", tuple(boxes.shape))
    require(0 < exponent < float("inf"), "exponent", "positive and finite", exponent)
    values = torch.cat([probs.double().pow(exponent), probs.new_ones(len(probs), 1).double()], dim=1)
    sums = _fill_rectangles(values, boxes, image_size)
    return sums[:-1].clamp(min=0) / sums[-1].round().clamp(min=1)


def _fill_rectangles(values: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return the (V, H, W) sum of (P, V) values over the boxes that hold the centre of each pixel."""
    height, width = image_size
    limit = boxes.new_tensor([width, height, width, height]).double()
    # Pixel i has its centre at i + 0.5, so that the first one inside [start, end) is ceil(start - 0.5).
    corners = torch.minimum((boxes.double() - 0.5).ceil().clamp(min=0), limit).long()
    x0, y0, x1, y1 = corners.unbind(dim=1)
    steps = values.new_zeros(values.shape[1], (height + 1) * (width + 1))
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        steps.index_add_(1, y * (width + 1) + x, sign * values.T)
    return steps.reshape(-1, height + 1, width + 1).cumsum(dim=1).cumsum(dim=2)[:, :height, :width]


def map_peak(values: Tensor) -> tuple[float, float]:
    """Return the highest point of a map as ``(x, y)`` in pixels.

    A map is made of flat pieces; of all the pixels at the top, the one nearest to their common centre is taken.

    Args:
        values: (H, W).
    """
    top = (values >= values.max() - _LEVEL * values.max().abs()).nonzero().double()  # (T, 2) as (y, x)
    y, x = top[(top - top.mean(dim=0)).square().sum(dim=1).argmin()].tolist()
    return x + 0.5, y + 0.5


def map_box(values: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the box around the part of a map that hangs together with its peak.

    Args:
        values: (H, W), not negative.
        threshold: The share of the maximum from which a pixel belongs.

    Returns:
        (4,) float64 xyxy, pixels.
    """
    require(0 < threshold <= 1, "threshold", "above 0 and at most 1", threshold)
    x, y = map_peak(values)
    region = _region_around(values >= threshold * (1 - _LEVEL) * values.max(), int(y), int(x))
    rows, columns = region.any(dim=1).nonzero()[:, 0], region.any(dim=0).nonzero()[:, 0]
    box = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return box.double()


def _region_around(mask: Tensor, y: int, x: int) -> Tensor:
    """Return the part of an (H, W) mask that is joined to one of its pixels by steps along rows and columns."""
    region = torch.zeros_like(mask)
    region[y, x] = True
    while True:
        grown = _along_rows(_along_rows(region, mask).T, mask.T).T
        if torch.equal(grown, region):
            return region
        region = grown


def _along_rows(region: Tensor, mask: Tensor) -> Tensor:
    """Return ``region`` grown over every unbroken run of ``mask`` in a row that it touches."""
    width = mask.shape[1]
    # A run is numbered by the gaps before it in its row.
    run = (~mask).long().cumsum(dim=1) + (width + 1) * torch.arange(len(mask), device=mask.device)[:, None]
    touched = torch.zeros((width + 1) * len(mask), dtype=torch.bool, device=mask.device)
    touched[run[region]] = True
    return touched[run] & mask
