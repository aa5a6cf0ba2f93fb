"""Does a classifier of patches know where things are? Pointing accuracy and the correct-localisation rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from transferkit.boxes import iou
from transferkit.errors import require
from transferkit.scorer.checks import BACKGROUND
from transferkit.scorer.score_map import map_box, map_peak, score_map
from transferkit.scorer.table import markdown_table, number_or_none, percent, plain_table


@dataclass(frozen=True)
class Rates:
    """How often a class was located, each as a share of its images; NaN for a class without images.

    Attributes:
        pointing: The map's maximum lies in an object of the class.
        chance: A point drawn anywhere in the image would.
        centre: The middle of the image would.
        corloc: The map's box overlaps an object of the class by half (IoU).
        whole_image: The box of the whole image would.
    """

    pointing: float = math.nan
    chance: float = math.nan
    centre: float = math.nan
    corloc: float = math.nan
    whole_image: float = math.nan


@dataclass(frozen=True)
class LocalizationResult:
    """Localisation per class.

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
            rows.append([name, str(images), *(percent(getattr(rates, rate)) for rate in names)])
        return rows

    def __str__(self) -> str:
        return plain_table(self.table())

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
    """Collect localisation rates image by image.

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
            difficult: (N,) bool.
        """
        for k in sorted(set(classes[~difficult].tolist())):
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
    centre = (width / 2, height / 2)
    found = map_box(values, threshold)[None]
    whole = torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64)
    return [
        float(_inside(map_peak(values), objects, tolerance)),
        _covered_share(objects, (height, width), tolerance),
        float(_inside(centre, objects, tolerance)),
        float((iou(found, objects) >= 0.5).any()),
        float((iou(whole, objects) >= 0.5).any()),
    ]


def _inside(point: tuple[float, float], boxes: Tensor, tolerance: float) -> bool:
    x, y = point
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    across = (x0 - tolerance <= x) & (x < x1 + tolerance)
    return bool((across & (y0 - tolerance <= y) & (y < y1 + tolerance)).any())


def _covered_share(boxes: Tensor, image_size: tuple[int, int], tolerance: float) -> float:
    """Return the share of pixels whose centre lies in any of the boxes."""
    y, x = (torch.arange(length, dtype=boxes.dtype) + 0.5 for length in image_size)
    x0, y0, x1, y1 = (boxes + boxes.new_tensor([-tolerance, -tolerance, tolerance, tolerance])).unbind(dim=1)
    across = (x0[:, None] <= x) & (x < x1[:, None])  # (N, W)
    down = (y0[:, None] <= y) & (y < y1[:, None])  # (N, H)
    covered = (down[:, :, None] & across[:, None, :]).any(dim=0)  # (H, W)
    return float(covered.double().mean())
