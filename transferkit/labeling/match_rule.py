"""What all rules have in common that ask which objects match a patch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.labeling.decision import Decision, Evidence, Several, decide
from transferkit.labeling.value import Objects, PatchLabels

Special = Literal["count", "ignore", "drop"]

_SEVERAL = ("background", "ignore", "largest", "same_class")
_SPECIAL = ("count", "ignore", "drop")


@dataclass(frozen=True, kw_only=True)
class MatchRule(ABC):
    """Labels a patch by the one object that matches it, else as background.

    A rule of one's own derives from this and measures (:meth:`evidence`), or has a ``label`` method of its own.

    Attributes:
        several: What a patch is that more than one object matches: ``"background"``, ``"ignore"``, the class of
            the ``"largest"`` of them in the patch, or, with ``"same_class"``, their class where they agree and
            else background.
        difficult: Objects marked difficult ``"count"`` like others, make the patches that they would label
            ``"ignore"``, or are ``"drop"``ped as if they were not there.
        truncated: The same for objects marked truncated.
    """

    several: Several = "background"
    difficult: Special = "count"
    truncated: Special = "count"

    def __post_init__(self) -> None:
        require(self.several in _SEVERAL, "several", f"one of {_SEVERAL}", self.several)
        require(self.difficult in _SPECIAL, "difficult", f"one of {_SPECIAL}", self.difficult)
        require(self.truncated in _SPECIAL, "truncated", f"one of {_SPECIAL}", self.truncated)

    @abstractmethod
    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure P patches, ``boxes`` (P, 4) xyxy in pixels, against N objects."""

    def label(self, boxes: Tensor, objects: Objects) -> PatchLabels:
        """Return the labels of ``boxes``, (P, 4) xyxy, pixels."""
        decision = self.decide(boxes, objects)
        return PatchLabels(decision.labels, decision.matched)

    def decide(self, boxes: Tensor, objects: Objects) -> Decision:
        """Return the labels of ``boxes`` with their reasons."""
        rows = (~self._flagged(objects, "drop")).nonzero()[:, 0]
        kept = objects.keep(rows)
        decision = decide(self.evidence(boxes, kept), kept, self.several, self._flagged(kept, "ignore"))
        matched = decision.matched
        if len(rows) < len(objects):
            matched = torch.where(matched >= 0, rows[matched.clamp(min=0)], -1) if len(rows) else matched
        return Decision(decision.labels, matched, decision.reasons)

    def _flagged(self, objects: Objects, treatment: Special) -> Tensor:
        """Return (N,) bool: the objects that are treated so."""
        flagged = torch.zeros_like(objects.difficult)
        if self.difficult == treatment:
            flagged = flagged | objects.difficult
        if self.truncated == treatment:
            flagged = flagged | objects.truncated
        return flagged
