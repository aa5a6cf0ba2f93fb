"""Which class a patch shows: rules that turn annotated boxes into patch labels.

A rule is a frozen value with every threshold in sight; :func:`label_patches` applies one and :func:`explain` says why
a patch got its label. Needs nothing but tensors.
"""

from transferkit.labeling.centre_rule import CentreRule
from transferkit.labeling.decision import Decision, Evidence, Reason
from transferkit.labeling.explain import explain
from transferkit.labeling.iou_rule import IoURule
from transferkit.labeling.label_patches import label_patches
from transferkit.labeling.match_rule import MatchRule
from transferkit.labeling.overlap_rule import OverlapRule
from transferkit.labeling.value import BACKGROUND, IGNORE, Objects, PatchLabels, Rule

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "CentreRule",
    "Decision",
    "Evidence",
    "IoURule",
    "MatchRule",
    "Objects",
    "OverlapRule",
    "PatchLabels",
    "Reason",
    "Rule",
    "explain",
    "label_patches",
]
