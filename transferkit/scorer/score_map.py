"""Where in an image a class is seen: patch scores spread over the pixels, and what can be read off them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from transferkit.errors import require

# Pixels whose scores differ by less than this share of the maximum are equally high: the same patches were
# summed in another order.
_LEVEL = 1e-9


def score_map(probs: Tensor, boxes: Tensor, image_size: tuple[int, int], exponent: float = 1) -> Tensor:
    """Return, for every pixel, the sum of ``p ** exponent`` over the patches, each weighted by its nearness.

    A patch counts fully at its centre and less and less towards its rim, where it ends: ``(1 - |u|) (1 - |v|)``
    with u and v from -1 to 1 across it. It is a class's patch if it holds most of an object, which then lies about
    its middle; smaller patches inside the object are background. Therefore neither of two simpler maps will do.
    The mean over the patches that cover a pixel is highest where few do, beside the object or at the photo's
    rim; the plain sum is level wherever the same patches overlap. With probabilities simulated from the labels of
    100 photos' patches the maximum lay in the object in 82.4 % of the cases (plain sum 72.2, mean 38.0, the middle
    of the photo 71.3; tests/benchmarks/map_readings.py), and with AlexNet's features of 150 photos in 71.4 % (71.4,
    43.2, 65.7; tests/benchmarks/scores_on_photos.py). Large exponents, which help to tell photos apart, leave
    fewer patches to tell places apart: with 5 it was 79.6 %.

    Args:
        probs: (P, K) probabilities.
        boxes: (P, 4) xyxy, pixels; need not lie on whole pixels.
        image_size: ``(height, width)``, pixels.
        exponent: Positive; with ``math.inf`` the best patch of each class counts alone.

    Returns:
        (K, H, W) float64; 0 where no patch reaches.

    Raises:
        ArgumentError: One box per patch is not given, or an exponent out of range.
    """
    require(boxes.shape == (len(probs), 4), "boxes", f"({len(probs)}, 4), one per patch", tuple(boxes.shape))
    require(exponent > 0, "exponent", "positive, or math.inf for the best patch", exponent)
    probs, boxes = probs.double(), boxes.double().to(probs.device)
    if math.isinf(exponent):
        best = probs.amax(dim=0) if len(probs) else 0.0
        scores = torch.where(probs == best, probs, 0.0)
    else:
        scores = probs.pow(exponent)
    rows = _nearness(boxes[:, 1], boxes[:, 3], image_size[0])  # (P, H)
    columns = _nearness(boxes[:, 0], boxes[:, 2], image_size[1])  # (P, W)
    return torch.stack([(rows * score[:, None]).T @ columns for score in scores.unbind(dim=1)])


def _nearness(start: Tensor, end: Tensor, length: int) -> Tensor:
    """Return the (P, length) weight of pixel centres along one axis: 1 in a patch's middle, 0 from its ends on."""
    centres = torch.arange(length, dtype=start.dtype, device=start.device) + 0.5
    half = ((end - start) / 2).clamp(min=1e-9)[:, None]
    return (1 - (centres - (start[:, None] + half)).abs() / half).clamp(min=0)


def map_peak(values: Tensor) -> tuple[float, float]:
    """Return the highest point of a map as ``(x, y)`` in pixels.

    A map is made of flat pieces; of all the pixels at the top, the one nearest to their common centre is taken.

    Args:
        values: (H, W).
    """
    top = (values >= values.max() - _LEVEL * values.max().abs()).nonzero().double()  # (T, 2) as (y, x)
    y, x = top[(top - top.mean(dim=0)).square().sum(dim=1).argmin()].tolist()
    return x + 0.5, y + 0.5


def map_box(values: Tensor, threshold: float = 0.25) -> Tensor:
    """Return the box around the part of a map that hangs together with its peak.

    A quarter of the maximum is where the map of one patch has lost three quarters of its way to the rim: the box
    has 56 % of the patch's area, as an object has that was labelled by how much of the patch it fills.

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
