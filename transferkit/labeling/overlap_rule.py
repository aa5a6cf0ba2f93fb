"""The recipes' rule: an object must fill enough of the patch, and the patch must show enough of the object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.boxes import area, intersection
from transferkit.errors import require
from transferkit.labeling.match_rule import Evidence, MatchRule
from transferkit.labeling.value import Objects


@dataclass(frozen=True)
class OverlapRule(MatchRule):
    """An object matches a patch when it fills enough of it and enough of the object is seen.

    Attributes:
        patch_fraction: Least part of the patch's area that the object fills.
        object_fraction: Least part of the object's area that the patch shows.
        near: ``(patch_fraction, object_fraction)`` from which a patch that matches no object is ignored
            instead of background; ``None`` for no such band.
        max_other_fraction: Largest part of itself that any *other* object may show in the patch; one that shows
            more makes it a patch with several objects. 0 means that no second object may touch it; ``None``
            that only matching objects count.

    References: Oquab, Bottou, Laptev, Sivic: Learning and transferring mid-level image representations using
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
        for name in ("patch_fraction", "object_fraction"):
            require(0 < getattr(self, name) <= 1, name, "above 0 and at most 1", getattr(self, name))
        if self.near is not None:
            below = 0 < self.near[0] <= self.patch_fraction and 0 < self.near[1] <= self.object_fraction
            limits = (self.patch_fraction, self.object_fraction)
            require(below, "near", f"two fractions above 0 and at most {limits}", self.near)
        if self.max_other_fraction is not None:
            inside = 0 <= self.max_other_fraction < 1
            require(inside, "max_other_fraction", "from 0 to below 1, or None", self.max_other_fraction)
            strict = self.several in ("background", "ignore")
            require(strict, "several", "'background' or 'ignore' with max_other_fraction", self.several)

    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure ``boxes``, (P, 4), against the objects."""
        shared = intersection(boxes, objects.boxes)  # (P, N)
        of_patch = _fraction(shared, area(boxes)[:, None])
        of_object = _fraction(shared, area(objects.boxes)[None, :])
        matched = (of_patch >= self.patch_fraction) & (of_object >= self.object_fraction)
        near = torch.zeros_like(matched)
        if self.near is not None:
            near = (of_patch >= self.near[0]) & (of_object >= self.near[1]) & ~matched
        present = matched
        if self.max_other_fraction is not None:
            present = matched | (of_object > self.max_other_fraction)
        measures = {
            "patch_fraction": (of_patch, self.patch_fraction),
            "object_fraction": (of_object, self.object_fraction),
        }
        return Evidence(matched, shared, near, present, measures)


def _fraction(shared: Tensor, whole: Tensor) -> Tensor:
    # A division, rather than shared >= threshold * whole: a correctly rounded quotient reaches the threshold as
    # written whenever the true one does (3 / 5 is 0.6), while a product may step over it (0.1 * 3 > 0.3).
    return torch.where(whole > 0, shared / whole, 0)
