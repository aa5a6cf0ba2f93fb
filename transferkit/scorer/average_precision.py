"""Average precision, each variant to the letter of its definition."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from transferkit.errors import did_you_mean, require
from transferkit.scorer.ranking import Ranking, rank

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
        targets: Same shape, bool: whether the image shows the class.
        ignore: Same shape, bool: images that count neither as right nor as wrong for the class.
        interpolation: ``"all-points"``, ``"11-point"`` or ``"none"``.
        minimum_score: Images scored below it are not retrieved: neither right nor wrong where they stand,
            though their positives remain among those to be found.

    Returns:
        () or (K,) float64 on the device of ``scores``; NaN for a class without positives.

    Raises:
        ArgumentError: Shapes or dtypes that do not fit, a NaN score, or an unknown interpolation.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.7])
        >>> average_precision(scores, torch.tensor([True, False, True]))
        tensor(0.8333, dtype=torch.float64)

    References:
        Everingham et al., The Pascal Visual Object Classes (VOC) Challenge, IJCV 2010, section 4.2;
        VOC2007 and VOC2012 development kits, VOCevalcls.m and VOCap.m.
    """
    ranking = rank(scores, targets, ignore=ignore, minimum_score=minimum_score)
    return ranking_ap(ranking, interpolation).reshape(scores.shape[1:])


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
