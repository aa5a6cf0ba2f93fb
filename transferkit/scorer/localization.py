"""Where in an image a class is seen, and whether that is where it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from transferkit.annotated import as_tensor, truth
from transferkit.boxes import as_size, iou
from transferkit.display import markdown_table, summary_table
from transferkit.errors import require
from transferkit.scorer.image_scorer import BACKGROUND
from transferkit.scorer.result import marked, number_or_none, percent

Size: TypeAlias = tuple[int, int]

# Pixels whose scores differ by less than this share of the maximum are equally high: the same patches were
# summed in another order.
_LEVEL = 1e-9


def score_map(
    probs: Tensor, boxes: Tensor, image_size: Size, exponent: float = 1, *, map_size: Size | None = None
) -> Tensor:
    """Return, for every pixel, the sum of ``p ** exponent`` over the patches, each weighted by its nearness.

    A patch counts fully at its center and less and less toward its rim, where it ends: ``(1 - |u|) (1 - |v|)``
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
        map_size: ``(height, width)`` of the map, for one coarser than the image; ``None`` for the image's own. Its
            pixels show what lies at their centers.

    Returns:
        (K, H, W) float64; 0 where no patch reaches.

    Raises:
        ArgumentError: One box per patch is not given, or an exponent out of range.
    """
    probs, boxes = as_tensor("probs", probs), as_tensor("boxes", boxes)
    require(boxes.shape == (len(probs), 4), "boxes", f"({len(probs)}, 4), one per patch", tuple(boxes.shape))
    require(exponent > 0, "exponent", "positive, or math.inf for the best patch", exponent)
    probs, boxes = probs.double(), boxes.double().to(probs.device)
    if math.isinf(exponent):
        best = probs.amax(dim=0) if len(probs) else 0.0
        scores = torch.where(probs == best, probs, 0.0)
    else:
        scores = probs.pow(exponent)
    (height, width), (down, across) = (
        image_size,
        as_size("map_size", image_size if map_size is None else map_size),
    )
    rows = _nearness(boxes[:, 1], boxes[:, 3], height, down)  # (P, H)
    columns = _nearness(boxes[:, 0], boxes[:, 2], width, across)  # (P, W)
    return torch.stack([(rows * score[:, None]).T @ columns for score in scores.unbind(dim=1)])


def _nearness(start: Tensor, end: Tensor, length: int, count: int) -> Tensor:
    """Return the (P, count) weight of pixel centers along one axis: 1 in a patch's middle, 0 from its ends on."""
    centers = (torch.arange(count, dtype=start.dtype, device=start.device) + 0.5) * (length / count)
    half = ((end - start) / 2).clamp(min=1e-9)[:, None]
    return (1 - (centers - (start[:, None] + half)).abs() / half).clamp(min=0)


def map_peak(values: Tensor) -> tuple[float, float]:
    """Return the highest point of a map as ``(x, y)`` in pixels.

    A map is made of flat pieces; of all the pixels at the top, the one nearest to their common center is taken.

    Args:
        values: (H, W).
    """
    top = (values >= values.max() - _LEVEL * values.max().abs()).nonzero().double()  # (T, 2) as (y, x)
    y, x = top[(top - top.mean(dim=0)).square().sum(dim=1).argmin()].tolist()
    return x + 0.5, y + 0.5


def map_box(values: Tensor, threshold: float = 0.25) -> Tensor:
    """Return the box around the part of a map that hangs together with its peak.

    A quarter of the maximum is where the map of one patch has lost three quarters of its way to the rim: the box
    has 56 % of the patch's area, as an object has that was labeled by how much of the patch it fills.

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


# Does a classifier of patches know where things are? Pointing accuracy and the correct-localization rate.


@dataclass(frozen=True)
class Rates:
    """How often a class was located, each as a share of its images; NaN for a class without images.

    Attributes:
        pointing: The map's maximum lies in an object of the class.
        chance: A point drawn anywhere in the image would.
        center: The middle of the image would.
        corloc: The map's box overlaps an object of the class by half (IoU).
        whole_image: The box of the whole image would.
    """

    pointing: float = math.nan
    chance: float = math.nan
    center: float = math.nan
    corloc: float = math.nan
    whole_image: float = math.nan


@dataclass(frozen=True)
class LocalizationResult:
    """Localization per class.

    Attributes:
        class_names: The C classes, background not among them.
        images: Per class, the images that hold an object of it that is not difficult.
        rates: Per class.
    """

    class_names: tuple[str, ...]
    images: tuple[int, ...]
    rates: tuple[Rates, ...]

    def mean(self) -> Rates:
        """Return the mean over the classes that have images."""
        known = [rates for rates, images in zip(self.rates, self.images, strict=True) if images]
        if not known:
            return Rates()
        return Rates(*(sum(getattr(r, f.name) for r in known) / len(known) for f in fields(Rates)))

    def table(self) -> list[list[str]]:
        """Return header and rows as text, rates in percent."""
        names = [field.name for field in fields(Rates)]
        header = ["CorLoc" if name == "corloc" else name.replace("_", " ") for name in names]
        rows = [["class", "images", *header]]
        for name, images, rates in zip(
            (*self.class_names, "mean"), (*self.images, ""), (*self.rates, self.mean()), strict=True
        ):
            label = marked(name, images) if isinstance(images, int) else name
            rows.append([label, str(images), *(percent(getattr(rates, rate)) for rate in names)])
        return rows

    def __str__(self) -> str:
        return summary_table(self.table())

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return markdown_table(self.table()) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; NaN becomes ``None``."""

        def plain(rates: Rates) -> dict[str, float | None]:
            return {name: number_or_none(value) for name, value in vars(rates).items()}

        classes = zip(self.class_names, self.images, self.rates, strict=True)
        return {
            "mean": plain(self.mean()),
            "classes": [{"name": name, "images": images, **plain(rates)} for name, images, rates in classes],
        }


class LocalizationMeter:
    """Collect localization rates image by image.

    An image counts for each class of which it holds an object that is not difficult; the object found may be
    any of the class.

    Args:
        class_names: K names, background included.
        exponent: Of the maps; see :func:`score_map`.
        threshold: The share of a map's maximum inside its box; see :func:`map_box`.
        tolerance: How many pixels beside an object still count as pointing at it.

    References:
        Oquab et al., Is object localization for free? CVPR 2015, section 5 (which allows 18 pixels).
        Deselaers, Alexe and Ferrari, Weakly supervised localization and learning with generic knowledge,
        IJCV 2012 (CorLoc).
    """

    def __init__(
        self, class_names: Sequence[str], *, exponent: float = 1, threshold: float = 0.25, tolerance: float = 0
    ) -> None:
        require(tolerance >= 0, "tolerance", "0 or more pixels", tolerance)
        self.class_names = tuple(class_names)
        self.exponent = exponent
        self.threshold = threshold
        self.tolerance = tolerance
        self._images = [0] * len(self.class_names)
        self._totals = [[0.0] * len(fields(Rates)) for _ in self.class_names]

    def add_image(
        self,
        probs: Tensor,
        boxes: Tensor,
        image_size: tuple[int, int],
        objects: Tensor,
        classes: Tensor,
        difficult: Tensor,
    ) -> None:
        """Take in one image.

        Args:
            probs: (P, K) probabilities of its patches.
            boxes: (P, 4) xyxy in pixels: where the patches lie.
            image_size: ``(height, width)``, pixels.
            objects: (N, 4) xyxy in pixels.
            classes: (N,) integers in 1..K-1.
            difficult: (N,) bool or 0 and 1.
        """
        for k in sorted(set(classes[~truth("difficult", difficult)].tolist())):
            values = score_map(probs[:, k : k + 1], boxes, image_size, self.exponent)[0]
            found = _locate(values, objects[classes == k].double().cpu(), self.threshold, self.tolerance)
            self._images[k] += 1
            self._totals[k] = [total + rate for total, rate in zip(self._totals[k], found, strict=True)]

    def compute(self) -> LocalizationResult:
        """Return the rates so far."""
        kept = [k for k, name in enumerate(self.class_names) if name != BACKGROUND]
        counts = [self._images[k] for k in kept]
        rates = [
            Rates(*(total / self._images[k] for total in self._totals[k])) if self._images[k] else Rates()
            for k in kept
        ]
        return LocalizationResult(tuple(self.class_names[k] for k in kept), tuple(counts), tuple(rates))


def _locate(values: Tensor, objects: Tensor, threshold: float, tolerance: float) -> list[float]:
    """Return the fields of :class:`Rates` for one map, each 0 or 1 but for the chance."""
    values = values.cpu()
    height, width = values.shape
    center = (width / 2, height / 2)
    found = map_box(values, threshold)[None]
    whole = torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64)
    return [
        float(_inside(map_peak(values), objects, tolerance)),
        _covered_share(objects, (height, width), tolerance),
        float(_inside(center, objects, tolerance)),
        float((iou(found, objects) >= 0.5).any()),
        float((iou(whole, objects) >= 0.5).any()),
    ]


def _inside(point: tuple[float, float], boxes: Tensor, tolerance: float) -> bool:
    x, y = point
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    across = (x0 - tolerance <= x) & (x < x1 + tolerance)
    return bool((across & (y0 - tolerance <= y) & (y < y1 + tolerance)).any())


def _covered_share(boxes: Tensor, image_size: tuple[int, int], tolerance: float) -> float:
    """Return the share of pixels whose center lies in any of the boxes."""
    y, x = (torch.arange(length, dtype=boxes.dtype) + 0.5 for length in image_size)
    x0, y0, x1, y1 = (boxes + boxes.new_tensor([-tolerance, -tolerance, tolerance, tolerance])).unbind(dim=1)
    across = (x0[:, None] <= x) & (x < x1[:, None])  # (N, W)
    down = (y0[:, None] <= y) & (y < y1[:, None])  # (N, H)
    covered = (down[:, :, None] & across[:, None, :]).any(dim=0)  # (H, W)
    return float(covered.double().mean())
