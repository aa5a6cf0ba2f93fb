"""Which class a patch shows: rules that turn annotated boxes into patch labels.

A rule (``rules``) is a frozen value with every threshold in sight. :func:`label_patches` applies one and
:func:`explain` says why a patch got its label (``labels``, ``decision``). Needs nothing but tensors.
"""

from transferkit.labeling.decision import (
    BACKGROUND,
    IGNORE,
    Decision,
    Evidence,
    Objects,
    PatchLabels,
    Reason,
    Rule,
)
from transferkit.labeling.labels import explain, label_patches
from transferkit.labeling.rules import CenterRule, IoURule, MatchRule, OverlapRule

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "CenterRule",
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
