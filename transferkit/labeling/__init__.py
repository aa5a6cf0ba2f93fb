"""Which class a patch shows: rules that turn annotated boxes into patch labels.

A rule is a frozen value with every threshold in sight; :func:`label_patches` applies one. Needs nothing but
tensors.
"""

from transferkit.labeling.label_patches import label_patches
from transferkit.labeling.match_rule import Evidence, MatchRule
from transferkit.labeling.overlap_rule import OverlapRule
from transferkit.labeling.value import BACKGROUND, IGNORE, Objects, PatchLabels, Rule

__all__ = [
    "BACKGROUND",
    "IGNORE",
    "Evidence",
    "MatchRule",
    "Objects",
    "OverlapRule",
    "PatchLabels",
    "Rule",
    "label_patches",
]
