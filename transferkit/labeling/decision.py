"""One label per patch from what a rule measured, and the reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

from transferkit.labeling.value import BACKGROUND, IGNORE, Objects

Several = Literal["background", "ignore", "largest", "same_class"]


class Reason(IntEnum):
    """Why a patch has its label."""

    NO_MATCH = 0
    NEARLY = 1
    ONE = 2
    LARGEST = 3
    SAME_CLASS = 4
    CROWDED = 5
    CROWDED_IGNORED = 6
    SPECIAL = 7


_LABELLED = (Reason.ONE, Reason.LARGEST, Reason.SAME_CLASS)
_IGNORED = (Reason.NEARLY, Reason.CROWDED_IGNORED, Reason.SPECIAL)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a rule measured between P patches and N objects.

    Attributes:
        matched: (P, N) bool: the object is in the patch as the rule wants it.
        strength: (P, N), 0 or more: tells which of several objects is the largest in the patch.
        near: (P, N) bool: the object does not match, but nearly; ``None`` for never.
        others: (P, N) bool: the object does not match, but shows enough to be a second one; ``None`` for never.
        measures: (P, N) by name, with the threshold that each is held to, for explanations.
    """

    matched: Tensor
    strength: Tensor
    near: Tensor | None = None
    others: Tensor | None = None
    measures: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Decision:
    """The labels of P patches with their grounds.

    Attributes:
        labels: (P,) int64: class, background or ``IGNORE``.
        matched: (P,) int64: the object that gave the label, -1 where none did.
        reasons: (P,) int64, of :class:`Reason`.
    """

    labels: Tensor
    matched: Tensor
    reasons: Tensor


def decide(evidence: Evidence, objects: Objects, several: Several, special: Tensor) -> Decision:
    """Give each patch the class of the object that matches it.

    Args:
        evidence: Of P patches and N objects.
        objects: The N objects.
        several: What a patch is that several objects match.
        special: (N,) bool, objects whose patches are ignored.
    """
    matches = evidence.matched.sum(dim=1)  # (P,)
    if not len(objects):
        return Decision(matches, matches - 1, torch.full_like(matches, Reason.NO_MATCH))
    best = _largest(evidence, objects.classes)
    crowded = matches > 1
    if evidence.others is not None:
        crowded = crowded | ((matches > 0) & evidence.others.any(dim=1))
    reasons = torch.where(matches > 0, int(Reason.ONE), int(Reason.NO_MATCH))
    if evidence.near is not None:
        reasons[(matches == 0) & evidence.near.any(dim=1)] = Reason.NEARLY
    reasons = torch.where(crowded, _of_several(evidence, objects.classes[best], objects, several), reasons)
    labelled = _one_of(reasons, _LABELLED)
    reasons[labelled & special[best]] = Reason.SPECIAL
    labelled = labelled & ~special[best]
    labels = torch.where(labelled, objects.classes[best], BACKGROUND)
    labels[_one_of(reasons, _IGNORED)] = IGNORE
    return Decision(labels, torch.where(labelled, best, -1), reasons)


def _of_several(evidence: Evidence, best_class: Tensor, objects: Objects, several: Several) -> Tensor:
    """Return the reason, (P,), for patches with several objects."""
    if several == "same_class":
        other = evidence.matched & (objects.classes != best_class[:, None])
        return torch.where(other.any(dim=1), int(Reason.CROWDED), int(Reason.SAME_CLASS))
    reason = {
        "background": Reason.CROWDED,
        "ignore": Reason.CROWDED_IGNORED,
        "largest": Reason.LARGEST,
    }[several]
    return torch.full_like(best_class, reason)


def _largest(evidence: Evidence, classes: Tensor) -> Tensor:
    """Return the strongest matched object of each patch, (P,); any, where none matches.

    Of equally strong ones the lowest class wins, so that labels do not depend on the order of the objects.
    """
    strength = torch.where(evidence.matched, evidence.strength, -1)
    tied = strength == strength.max(dim=1, keepdim=True).values
    return torch.where(tied, classes, classes.max() + 1).argmin(dim=1)


def _one_of(reasons: Tensor, some: tuple[Reason, ...]) -> Tensor:
    return torch.isin(reasons, torch.tensor(some, device=reasons.device))
