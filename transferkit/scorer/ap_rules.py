"""Average precision, each variant to the letter of its definition."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from transferkit.annotated import as_tensor, shape_problems, truth
from transferkit.errors import ArgumentError, did_you_mean, require


@dataclass(frozen=True)
class Ranking:
    """N images ordered by falling score, for each of K classes on its own.

    An image counts with a weight, 1 unless the ranking was resampled. A precision after several copies of one
    image in a row is only read after the last of them; as the copies of a right image raise it and recall
    together, no definition of average precision can tell the difference.

    Attributes:
        scores: (N, K) float64, falling along the ranks.
        order: (N, K) int64, which image stands at each rank.
        sought: (N, K) int64, the weight of the image if it is a positive.
        right: (N, K) int64, its weight if it is a positive and counts at its rank.
        wrong: (N, K) int64, its weight if it is a negative and counts at its rank.
    """

    scores: Tensor
    order: Tensor
    sought: Tensor
    right: Tensor
    wrong: Tensor

    @cached_property
    def positives(self) -> Tensor:
        """(K,) int64: how many are to be found."""
        return self.sought.sum(dim=0)

    @cached_property
    def hits(self) -> Tensor:
        """(N, K) int64: right images down to each rank."""
        return self.right.cumsum(dim=0)

    @cached_property
    def precision(self) -> Tensor:
        """(N, K) float64: right among right and wrong down to each rank; 0 before the first of either."""
        retrieved = self.hits + self.wrong.cumsum(dim=0)
        return self.hits.double() / retrieved.clamp(min=1)

    @cached_property
    def recall(self) -> Tensor:
        """(N, K) float64: right among all positives down to each rank; NaN for a class without positives."""
        return self.hits.double() / self.positives

    @cached_property
    def envelope(self) -> Tensor:
        """(N, K) float64: the best precision at each rank or further down."""
        return self.precision.flip(0).cummax(dim=0).values.flip(0)

    @cached_property
    def last_of_tie(self) -> Tensor:
        """(N, K) int64: the last rank with the same score as each rank."""
        count = len(self.scores)
        ranks = torch.arange(count, device=self.scores.device)[:, None].expand_as(self.scores)
        ends = torch.ones_like(self.scores, dtype=torch.bool)
        ends[:-1] = self.scores[1:] != self.scores[:-1]
        return ranks.where(ends, count).flip(0).cummin(dim=0).values.flip(0)

    def resampled(self, weights: Tensor) -> Ranking:
        """Return the ranking in which image n occurs ``weights[n]`` times; (N,) int64."""
        return self.weighted(weights[self.order])

    def weighted(self, weights: Tensor) -> Ranking:
        """Return the ranking in which the image at each rank occurs as often as ``weights`` says; (N, K) int64."""
        return Ranking(
            self.scores, self.order, self.sought * weights, self.right * weights, self.wrong * weights
        )


def rank(
    scores: Tensor, targets: Tensor, *, ignore: Tensor | None = None, minimum_score: float = -math.inf
) -> Ranking:
    """Order images by falling score; images of equal score stay in their given order.

    Args:
        scores: (N,) or (N, K); ``-inf`` means unscored and ranks last.
        targets: Same shape, bool or 0 and 1: whether the image shows the class.
        ignore: Same shape, bool or 0 and 1: images that are neither right nor wrong, and not among the positives.
        minimum_score: Images scored below it are neither right nor wrong, but stay among the positives.

    Raises:
        ArgumentError: Shapes that do not fit, targets other than 0 and 1, no image at all, or a NaN score.
    """
    scores, targets = as_tensor("scores", scores), truth("targets", targets)
    ignore = torch.zeros_like(targets) if ignore is None else truth("ignore", ignore)
    _check(scores, targets, ignore)
    scores = scores.double().reshape(len(scores), -1)
    targets, ignore = (mask.to(scores.device).reshape(scores.shape) for mask in (targets, ignore))
    ranked, order = scores.sort(dim=0, descending=True, stable=True)
    sought = (targets & ~ignore).gather(0, order)
    negative = (~targets & ~ignore).gather(0, order)
    retrieved = ranked >= minimum_score
    return Ranking(ranked, order, sought.long(), (sought & retrieved).long(), (negative & retrieved).long())


def _check(scores: Tensor, targets: Tensor, ignore: Tensor) -> None:
    problems = []
    if scores.ndim not in (1, 2) or len(scores) == 0:
        problems.append(f"scores must be (N,) or (N, K) with N >= 1, got {tuple(scores.shape)}")
    elif scores.isnan().any():
        problems.append(f"scores must not be NaN, got {int(scores.isnan().sum())} NaN")
    problems += shape_problems(scores, targets=targets, ignore=ignore)
    if problems:
        raise ArgumentError("; ".join(problems))


Interpolation = Literal["all-points", "11-point", "none"]

INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


def average_precision(
    scores: Tensor,
    targets: Tensor,
    *,
    ignore: Tensor | None = None,
    interpolation: Interpolation = "all-points",
    minimum_score: float = -math.inf,
) -> Tensor:
    """Return how well the scores rank the images that show a class before those that do not.

    With the images in the order of falling score, and ``hits`` and ``alarms`` the positives and negatives down
    to a rank, precision is ``hits / (hits + alarms)`` and recall ``hits / positives``. Then AP is

    - ``"all-points"`` (VOC2010 and later): the area under the precision made monotonic from the right,
      that is the mean over the positives of the best precision at their rank or further down;
    - ``"11-point"`` (VOC2007): the mean over the recalls 0, 0.1, ... 1 of the best precision at that recall or
      more, 0 where it is not reached. Recall is compared in whole numbers (``10 * hits >= k * positives``), so
      that 3 of 10 reach 0.3, which they miss in binary fractions;
    - ``"none"`` (scikit-learn's ``average_precision_score``): the mean over the positives of the precision at
      their rank.

    Ties: for the two VOC variants images of equal score stay in their given order, as the devkit's stable sort
    leaves them; for ``"none"`` they share one rank, as in scikit-learn. ``-inf`` means unscored and ranks last.

    Args:
        scores: (N,) or (N, K), higher means more surely present; any monotonic scale.
        targets: Same shape, bool or 0 and 1: whether the image shows the class.
        ignore: Same shape, bool or 0 and 1: images that count neither as right nor as wrong for the class.
        interpolation: ``"all-points"``, ``"11-point"`` or ``"none"``.
        minimum_score: Images scored below it are not retrieved: neither right nor wrong where they stand,
            though their positives remain among those to be found.

    Returns:
        () or (K,) float64 on the device of ``scores``; NaN for a class without positives.

    Raises:
        ArgumentError: Shapes that do not fit, targets other than 0 and 1, a NaN score, or an unknown interpolation.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.7])
        >>> average_precision(scores, torch.tensor([True, False, True]))
        tensor(0.8333, dtype=torch.float64)

    References:
        Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 2010, section 4.2;
        VOC2007 and VOC2012 development kits, VOCevalcls.m and VOCap.m.
    """
    ranking = rank(scores, targets, ignore=ignore, minimum_score=minimum_score)
    return ranking_ap(ranking, interpolation).reshape(np.shape(scores)[1:])


def ranking_ap(ranking: Ranking, interpolation: Interpolation) -> Tensor:
    """Return the (K,) average precision of an ordered set of images; see :func:`average_precision`."""
    known = "one of " + ", ".join(map(repr, INTERPOLATIONS)) + did_you_mean(str(interpolation), INTERPOLATIONS)
    require(interpolation in INTERPOLATIONS, "interpolation", known, interpolation)
    if interpolation == "all-points":
        ap = (ranking.envelope * ranking.right).sum(dim=0) / ranking.positives
    elif interpolation == "11-point":
        ap = _eleven_points(ranking)
    else:
        precision = ranking.precision.gather(0, ranking.last_of_tie)
        ap = (precision * ranking.right).sum(dim=0) / ranking.positives
    return torch.where(ranking.positives > 0, ap, torch.nan)


def _eleven_points(ranking: Ranking) -> Tensor:
    not_reached = torch.zeros_like(ranking.envelope[:1])
    envelope = torch.cat([ranking.envelope, not_reached])  # (N + 1, K)
    total = torch.zeros_like(not_reached)
    for k in range(11):
        total += envelope.gather(0, (10 * ranking.hits < k * ranking.positives).sum(dim=0, keepdim=True))
    return total[0] / 11


# Which average precision is meant: the interpolation, and what becomes of difficult objects.

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
            present: (N, K) bool or 0 and 1: the image shows the class at all.
            difficult_only: (N, K) bool or 0 and 1: it does, but only in objects marked difficult.
        """
        targets, ignore = self.counted(truth("present", present), truth("difficult_only", difficult_only))
        return rank(scores, targets, ignore=ignore, minimum_score=self.minimum_score)

    def counted(self, present: Tensor, difficult_only: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, K) bool which images show a class under this rule, and which count neither way."""
        positive = present | difficult_only if self.difficult == "positive" else present & ~difficult_only
        return positive, difficult_only if self.difficult == "ignored" else torch.zeros_like(difficult_only)

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
