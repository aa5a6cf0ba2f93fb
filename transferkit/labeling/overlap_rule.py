"""The recipes' rule: an object must fill enough of the patch, and the patch must show enough of the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.boxes import area, intersection
from transferkit.errors import require
from transferkit.labeling.decision import Evidence
from transferkit.labeling.match_rule import MatchRule
from transferkit.labeling.value import Objects


@dataclass(frozen=True)
class OverlapRule(MatchRule):
    """An object matches a patch when it fills enough of it and enough of the object is seen.

    Attributes:
        patch_fraction: Least part of the patch's area that the object fills.
        object_fraction: Least part of the object's area that the patch shows.
        near: ``(patch_fraction, object_fraction)`` from which a patch that matches no object is ignored
            instead of background; ``None`` for no such band.
        max_other_fraction: Largest part of itself that any other object may show in the patch; one that shows
            more makes it a patch with several objects. 0 means that no second object may touch it; ``None`` that
            only matching objects count.

    References:
        Oquab, Bottou, Laptev, Sivic: Learning and transferring mid-level image representations using
        convolutional neural networks, CVPR 2014, section 3.2.

    Example:
        >>> rule = OverlapRule(patch_fraction=0.2, object_fraction=0.6)
        >>> objects = Objects.of(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([7]))
        >>> rule.label(torch.tensor([[0.0, 0.0, 12.0, 12.0], [0.0, 0.0, 40.0, 40.0]]), objects).labels
        tensor([7, 0])
    """

    patch_fraction: float = 0.2
    object_fraction: float = 0.6
    near: tuple[float, float] | None = None
    max_other_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = (self.patch_fraction, self.object_fraction)
        for name, value in zip(("patch_fraction", "object_fraction"), limits, strict=True):
            require(0 < value <= 1, name, "above 0 and at most 1", value)
        if self.near is not None:
            inside = all(0 < value <= limit for value, limit in zip(self.near, limits, strict=True))
            require(inside, "near", f"two fractions above 0 and at most {limits}", self.near)
        if self.max_other_fraction is not None:
            inside = 0 <= self.max_other_fraction < 1
            require(inside, "max_other_fraction", "from 0 to below 1, or None", self.max_other_fraction)
            strict = self.several in ("background", "ignore")
            require(strict, "several", "'background' or 'ignore' with max_other_fraction", self.several)

    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure both fractions."""
        shared = intersection(boxes, objects.boxes)  # (P, N)
        of_patch = fraction(shared, area(boxes)[:, None])
        of_object = fraction(shared, area(objects.boxes)[None, :])
        matched = (of_patch >= self.patch_fraction) & (of_object >= self.object_fraction)
        near = others = None
        if self.near is not None:
            near = (of_patch >= self.near[0]) & (of_object >= self.near[1]) & ~matched
        if self.max_other_fraction is not None:
            others = (of_object > self.max_other_fraction) & ~matched
        measures = {
            "patch_fraction": (of_patch, self.patch_fraction),
            "object_fraction": (of_object, self.object_fraction),
        }
        return Evidence(matched, shared, near, others, measures)


def fraction(shared: Tensor, whole: Tensor) -> Tensor:
    """Return ``shared / whole``, and 0 where there is no whole.

    A rule compares this with its threshold, rather than ``shared`` with a product: a correctly rounded quotient
    reaches the threshold as written whenever the true one does (3 / 5 is 0.6), while a product may step over it
    (0.1 * 3 is more than 0.3).
    """
    return torch.where(whole > 0, shared / whole, 0)
