"""The simplest rule: the object's centre lies in the middle of the patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.boxes import area, intersection
from transferkit.errors import require
from transferkit.labeling.decision import Evidence
from transferkit.labeling.match_rule import MatchRule
from transferkit.labeling.overlap_rule import fraction
from transferkit.labeling.value import Objects


@dataclass(frozen=True)
class CentreRule(MatchRule):
    """An object matches a patch when its centre lies near the patch's and it fills enough of the patch.

    Attributes:
        offset: Farthest that the centres may be apart along either axis, in sides of the patch; 0.5 is anywhere
            inside it.
        patch_fraction: Least part of the patch's area that the object fills; 0 for any.

    Example:
        >>> objects = Objects.of(torch.tensor([[4.0, 4.0, 8.0, 8.0]]), torch.tensor([7]))
        >>> CentreRule(0.25).label(torch.tensor([[0.0, 0.0, 10.0, 10.0], [6.0, 6.0, 9.0, 9.0]]), objects).labels
        tensor([7, 0])
    """

    offset: float = 0.25
    patch_fraction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.offset <= 0.5, "offset", "from 0 to 0.5", self.offset)
        require(0 <= self.patch_fraction <= 1, "patch_fraction", "from 0 to 1", self.patch_fraction)

    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure how far apart the centres are, and how much of the patch is filled."""
        distance = (_centres(boxes)[:, None] - _centres(objects.boxes)[None]).abs()  # (P, N, 2)
        sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
        offset = torch.where(sides > 0, distance / sides, torch.inf).amax(dim=2)
        shared = intersection(boxes, objects.boxes)
        filled = fraction(shared, area(boxes)[:, None])
        matched = (offset <= self.offset) & (filled >= self.patch_fraction)
        measures = {"offset": (offset, self.offset), "patch_fraction": (filled, self.patch_fraction)}
        return Evidence(matched, shared, measures=measures)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
