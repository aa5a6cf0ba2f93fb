"""The rules: which objects match a patch."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from transferkit.boxes import area, intersection, iou
from transferkit.errors import require
from transferkit.labeling.decision import Decision, Evidence, Objects, PatchLabels, Several, decide

Special = Literal["count", "ignore", "drop"]

_SEVERAL = ("background", "ignore", "largest", "same_class")

_SPECIAL = ("count", "ignore", "drop")

_PAIRS_AT_ONCE = 2**22  # of a patch and an object; some 100 bytes are needed for each


@dataclass(frozen=True, kw_only=True)
class MatchRule(ABC):
    """Labels a patch by the one object that matches it, else as background.

    A rule of your own derives from this and measures (:meth:`evidence`), or has a ``label`` method of its own. It may
    compare patches: only the rules of this module, which look at each alone, are given many in pieces.

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
        alone = type(self).__module__ == __name__
        patches = max(1, len(boxes))
        at_once = max(1, _PAIRS_AT_ONCE // max(1, len(objects))) if alone else patches
        decided = [self.decide(boxes[i : i + at_once], objects) for i in range(0, patches, at_once)]
        return PatchLabels(torch.cat([d.labels for d in decided]), torch.cat([d.matched for d in decided]))

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


# The recipes' rule: an object must fill enough of the patch, and the patch must show enough of the object.


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
        _tell_points(self, objects)
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


def _tell_points(rule: MatchRule, objects: Objects) -> None:
    """Warn of objects that a rule about areas never matches."""
    points = int((area(objects.boxes) <= 0).sum())
    if points:
        warnings.warn(
            f"{points} of {len(objects)} objects have no area, and {type(rule).__name__} never matches such points: "
            "label them by CenterRule(), or give them the size that they stand for",
            stacklevel=2,
        )


# The detectors' rule: patch and object must nearly coincide.


@dataclass(frozen=True)
class IoURule(MatchRule):
    """An object matches a patch when their intersection over union is high enough.

    Of several that match, by default the one with the highest gives the label.

    Attributes:
        positive: Least intersection over union of a match.
        negative: Patches whose highest lies from here to below ``positive`` are ignored; ``None`` for none.

    References:
        Girshick, Donahue, Darrell, Malik: Rich feature hierarchies for accurate object detection and semantic
        segmentation, CVPR 2014, section 2.3.

    Example:
        >>> import torch
        >>> objects = Objects.of(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([7]))
        >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 4.0], [20.0, 20.0, 30.0, 30.0]])
        >>> IoURule(0.5, negative=0.3).label(boxes, objects).labels
        tensor([   7, -100,    0])
    """

    positive: float = 0.5
    negative: float | None = None
    several: Several = field(default="largest", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.positive <= 1, "positive", "above 0 and at most 1", self.positive)
        below = self.negative is None or 0 < self.negative <= self.positive
        require(below, "negative", f"above 0 and at most positive = {self.positive}, or None", self.negative)

    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure intersection over union."""
        _tell_points(self, objects)
        shared = iou(boxes, objects.boxes)  # (P, N)
        matched = shared >= self.positive
        near = None if self.negative is None else (shared >= self.negative) & ~matched
        return Evidence(matched, shared, near, measures={"iou": (shared, self.positive)})


# The simplest rule: the object's center lies in the middle of the patch.


@dataclass(frozen=True)
class CenterRule(MatchRule):
    """An object matches a patch when its center lies near the patch's and it fills enough of the patch.

    Attributes:
        offset: Farthest that the centers may be apart along either axis, in sides of the patch; 0.5 is anywhere
            inside it.
        patch_fraction: Least part of the patch's area that the object fills; 0 for any.

    Example:
        >>> objects = Objects.of(torch.tensor([[4.0, 4.0, 8.0, 8.0]]), torch.tensor([7]))
        >>> CenterRule(0.25).label(torch.tensor([[0.0, 0.0, 10.0, 10.0], [6.0, 6.0, 9.0, 9.0]]), objects).labels
        tensor([7, 0])
    """

    offset: float = 0.25
    patch_fraction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.offset <= 0.5, "offset", "from 0 to 0.5", self.offset)
        require(0 <= self.patch_fraction <= 1, "patch_fraction", "from 0 to 1", self.patch_fraction)

    def evidence(self, boxes: Tensor, objects: Objects) -> Evidence:
        """Measure how far apart the centers are, and how much of the patch is filled."""
        distance = (_centers(boxes)[:, None] - _centers(objects.boxes)[None]).abs()  # (P, N, 2)
        sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
        offset = torch.where(sides > 0, distance / sides, torch.inf).amax(dim=2)
        shared = intersection(boxes, objects.boxes)
        filled = fraction(shared, area(boxes)[:, None])
        matched = (offset <= self.offset) & (filled >= self.patch_fraction)
        measures = {"offset": (offset, self.offset), "patch_fraction": (filled, self.patch_fraction)}
        return Evidence(matched, shared, measures=measures)


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2
