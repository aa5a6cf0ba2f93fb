"""Which average precision is meant: the interpolation, and what becomes of difficult objects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.average_precision import INTERPOLATIONS, Interpolation, ranking_ap
from transferkit.scorer.ranking import Ranking, rank

Difficult = Literal["ignored", "positive", "negative"]
DIFFICULT: tuple[Difficult, ...] = get_args(Difficult)


@dataclass(frozen=True)
class APRule:
    """One of the rules by which average precision is reported.

    Attributes:
        interpolation: ``"all-points"``, ``"11-point"`` or ``"none"``; see :func:`average_precision`.
        difficult: What an image is whose only objects of the class are marked difficult: ``"ignored"`` (neither
            right nor wrong, the devkit's rule), ``"positive"`` or ``"negative"``.
        minimum_score: Images scored below it are not retrieved.

    Example:
        >>> print(APRule("11-point", "ignored"))
        11-point, difficult ignored
    """

    interpolation: Interpolation = "all-points"
    difficult: Difficult = "ignored"
    minimum_score: float = -math.inf

    def __post_init__(self) -> None:
        for value, argument, known in (
            (self.interpolation, "interpolation", INTERPOLATIONS),
            (self.difficult, "difficult", DIFFICULT),
        ):
            require(value in known, argument, "one of " + ", ".join(map(repr, known)), value)

    def __str__(self) -> str:
        ending = f", scores from {self.minimum_score:g}" if self.minimum_score > -math.inf else ""
        return f"{self.interpolation}, difficult {self.difficult}{ending}"

    def rank(self, scores: Tensor, present: Tensor, difficult_only: Tensor) -> Ranking:
        """Order images under this rule.

        Args:
            scores: (N, K).
            present: (N, K) bool: the image shows the class at all.
            difficult_only: (N, K) bool: it does, but only in objects marked difficult.
        """
        easy = present & ~difficult_only
        targets = present | difficult_only if self.difficult == "positive" else easy
        ignore = difficult_only if self.difficult == "ignored" else None
        return rank(scores, targets, ignore=ignore, minimum_score=self.minimum_score)

    def average_precision(self, scores: Tensor, present: Tensor, difficult_only: Tensor) -> Tensor:
        """Return the (K,) average precision under this rule; NaN for a class without positives."""
        return ranking_ap(self.rank(scores, present, difficult_only), self.interpolation)


VOC2007 = APRule("11-point", "ignored")
"""The VOC2007 development kit's."""

VOC2010 = APRule("all-points", "ignored")
"""The development kit's from VOC2010 on."""

NEON = APRule("all-points", "positive", minimum_score=1e-6)
"""The Nervana neon example's. That positives under the limit stay to be found is our reading of it."""

ALL_RULES = (*(APRule(i, d) for d in DIFFICULT for i in INTERPOLATIONS), NEON)
"""Every interpolation with every treatment of difficult objects, and NEON."""
