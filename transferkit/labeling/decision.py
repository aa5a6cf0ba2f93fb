"""The objects of an image, and one label per patch from what a rule measured, with the reason for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from transferkit.annotated import truth, whole_numbers
from transferkit.boxes import as_boxes
from transferkit.errors import ArgumentError

BACKGROUND = 0
"""The class of a patch without an object."""

IGNORE = -100
"""The label of a patch that is neither: losses skip it (it is the default ``ignore_index`` of torch)."""


class PatchLabels(NamedTuple):
    """The labels of P patches.

    Attributes:
        labels: (P,) int64: an object's class, 0 for background, or ``IGNORE``.
        matched: (P,) int64: the row of the object that gave the label, -1 where none did.
    """

    labels: Tensor
    matched: Tensor


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, checked.

    Attributes:
        boxes: (N, 4) xyxy, pixels.
        classes: (N,) int64 in 1..K-1.
        difficult: (N,) bool.
        truncated: (N,) bool.
    """

    boxes: Tensor
    classes: Tensor
    difficult: Tensor
    truncated: Tensor

    @staticmethod
    def of(
        boxes: Tensor, classes: Tensor, difficult: Tensor | None = None, truncated: Tensor | None = None
    ) -> Objects:
        """Check and complete the objects of an image.

        Args:
            boxes: (N, 4) xyxy, pixels.
            classes: (N,) whole numbers from 1.
            difficult: (N,) bool; ``None`` for none.
            truncated: (N,) bool; ``None`` for none.

        Raises:
            ArgumentError: A shape that does not fit the boxes, or a class that is below 1 or no whole number.
        """
        boxes, classes = as_boxes(boxes, "objects"), whole_numbers("classes", classes)
        rows = len(boxes)
        flags = [
            torch.zeros(rows, dtype=torch.bool) if flag is None else flag for flag in (difficult, truncated)
        ]
        columns = {"classes": classes, "difficult": flags[0], "truncated": flags[1]}
        wrong = [f"{name} {tuple(column.shape)}" for name, column in columns.items() if column.numel() != rows]
        if wrong:
            raise ArgumentError(f"there are {rows} objects, but {', '.join(wrong)}; each must be ({rows},)")
        if rows and int(classes.min()) <= BACKGROUND:
            raise ArgumentError(
                f"classes must be 1 or more (0 is the background), got {int(classes.min())} "
                f"at row {int(classes.argmin())}"
            )
        at = boxes.device
        return Objects(
            boxes,
            classes.reshape(-1).to(at),
            truth("difficult", flags[0]).reshape(-1).to(at),
            truth("truncated", flags[1]).reshape(-1).to(at),
        )

    def keep(self, rows: Tensor) -> Objects:
        """Return the objects where ``rows``, (N,) bool or indices, says so."""
        return Objects(self.boxes[rows], self.classes[rows], self.difficult[rows], self.truncated[rows])

    def __len__(self) -> int:
        return len(self.boxes)


@runtime_checkable
class Rule(Protocol):
    """Anything that labels patches; :class:`OverlapRule` is the one the recipes use."""

    def label(self, boxes: Tensor, objects: Objects) -> PatchLabels:
        """Return the labels of ``boxes``, (P, 4) xyxy, pixels."""
        ...


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


_LABELED = (Reason.ONE, Reason.LARGEST, Reason.SAME_CLASS)

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
    labeled = _one_of(reasons, _LABELED)
    reasons[labeled & special[best]] = Reason.SPECIAL
    labeled = labeled & ~special[best]
    labels = torch.where(labeled, objects.classes[best], BACKGROUND)
    labels[_one_of(reasons, _IGNORED)] = IGNORE
    return Decision(labels, torch.where(labeled, best, -1), reasons)


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
