"""From "this object matches this patch" to one label per patch: what all rules have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.labeling.value import BACKGROUND, IGNORE, Objects, PatchLabels

Several = Literal["background", "ignore", "largest", "same_class"]
Special = Literal["count", "ignore", "drop"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a rule measured between P patches and N objects.

    Attributes:
        matched: (P, N) bool: the object is in the patch as the rule wants it.
        strength: (P, N): which of several objects is the largest in the patch.
        near: (P, N) bool: the object does not match, but nearly.
        present: (P, N) bool: the object shows in the patch enough to count as a second one. Matched objects do.
        measures: (P, N) by name, with the threshold that each is held to, for explanations.
    """

    matched: Tensor
    strength: Tensor
    near: Tensor
    present: Tensor
    measures: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MatchRule(ABC):
    """Labels a patch by the one object that matches it, else as background.

    A rule of one's own derives from this and measures (:meth:`evidence`), or has a ``label`` method of its own.

    Attributes:
        several: What a patch is that more than one object matches: ``"background"``, ``"ignore"``, the class of
            the ``"largest"`` of them in the patch, or, with ``"same_class"``, their class where they agree and
            else background.
        difficult: Objects marked difficult ``"count"`` like others, make the patches they would label
            ``"ignore"``d, or are ``"drop"``ped as if they were not there.
        truncated: The same for objects marked truncated.
    """

    several: Several = "background"
    difficult: Special = "count"
    truncated: Special = "count"

    def __post_init__(self) -> None:
        severals, specials = ("background", "ignore", "largest", "same_class"), ("count", "ignore", "drop")
        require(self.several in severals, "several", f"one of {severals}", self.several)
        require(self.difficult in specials, "difficult", f"one of {specials}", self.difficult)
        require(self.truncated in specials, "truncated", f"one of {specials}", self.truncated)

    @abstractmethod
    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure ``boxes``, (P, 4), against the objects."""

    def label(self, boxes: Tensor, objects: Objects) -> PatchLabels:
        """Return the labels of ``boxes``, (P, 4) xyxy, pixels."""
        rows = self.considered(objects)
        labels, best = self.decide(self.evidence(boxes, objects.keep(rows)), objects.keep(rows))
        matched = torch.where(best >= 0, rows[best], -1) if len(rows) else best
        return PatchLabels(labels, matched)

    def considered(self, objects: Objects) -> Tensor:
        """Return the rows of the objects that are not dropped."""
        gone = torch.zeros_like(objects.difficult)
        if self.difficult == "drop":
            gone = gone | objects.difficult
        if self.truncated == "drop":
            gone = gone | objects.truncated
        return (~gone).nonzero()[:, 0]

    def decide(self, evidence: Evidence, objects: Objects) -> PatchLabels:
        """Turn the evidence into one label per patch."""
        matches = evidence.matched.sum(dim=1)
        if not len(objects):
            return PatchLabels(matches, matches - 1)
        best = _largest(evidence, objects.classes)
        crowded = (matches > 1) | (evidence.present & ~evidence.matched).any(dim=1)
        if self.several == "largest":
            clear = matches > 0
        elif self.several == "same_class":
            other = evidence.matched & (objects.classes[None] != objects.classes[best][:, None])
            clear = (matches > 0) & ~other.any(dim=1)
        else:
            clear = (matches == 1) & ~crowded
        labels = torch.where(clear, objects.classes[best], BACKGROUND)
        unsure = (matches == 0) & evidence.near.any(dim=1)
        if self.several == "ignore":
            unsure = unsure | ((matches > 0) & crowded)
        if self.difficult == "ignore":
            unsure = unsure | (clear & objects.difficult[best])
        if self.truncated == "ignore":
            unsure = unsure | (clear & objects.truncated[best])
        labels = torch.where(unsure, IGNORE, labels)
        return PatchLabels(labels, torch.where(labels > BACKGROUND, best, -1))


def _largest(evidence: Evidence, classes: Tensor) -> Tensor:
    """Return the row of the strongest matched object of each patch, (P,); arbitrary where none matches.

    Of equally strong ones the lowest class wins, so that the label does not depend on the objects' order.
    """
    strength = torch.where(evidence.matched, evidence.strength, -1)
    tied = strength == strength.max(dim=1, keepdim=True).values
    return torch.where(tied, classes[None], classes.max() + 1).argmin(dim=1)
