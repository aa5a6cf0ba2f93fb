"""The detectors' rule: patch and object must nearly coincide."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from transferkit.boxes import iou
from transferkit.errors import require
from transferkit.labeling.decision import Evidence, Several
from transferkit.labeling.match_rule import MatchRule
from transferkit.labeling.value import Objects


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
        shared = iou(boxes, objects.boxes)  # (P, N)
        matched = shared >= self.positive
        near = None if self.negative is None else (shared >= self.negative) & ~matched
        return Evidence(matched, shared, near, measures={"iou": (shared, self.positive)})
