"""Images in the order of their scores, with what was right and wrong down to each rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from transferkit.errors import ArgumentError


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
        at_rank = weights[self.order]  # (N, K)
        return Ranking(
            self.scores, self.order, self.sought * at_rank, self.right * at_rank, self.wrong * at_rank
        )


def rank(
    scores: Tensor, targets: Tensor, *, ignore: Tensor | None = None, minimum_score: float = -math.inf
) -> Ranking:
    """Order images by falling score; images of equal score stay in their given order.

    Args:
        scores: (N,) or (N, K); ``-inf`` means unscored and ranks last.
        targets: Same shape, bool: whether the image shows the class.
        ignore: Same shape, bool: images that are neither right nor wrong, and not among the positives.
        minimum_score: Images scored below it are neither right nor wrong, but stay among the positives.

    Raises:
        ArgumentError: Shapes or dtypes that do not fit, no image at all, or a NaN score.
    """
    ignore = torch.zeros_like(targets) if ignore is None else ignore
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
    for name, mask in (("targets", targets), ("ignore", ignore)):
        if mask.shape != scores.shape or mask.dtype != torch.bool:
            expected = f"a bool tensor of the scores' shape {tuple(scores.shape)}"
            problems.append(f"{name} must be {expected}, got {mask.dtype} {tuple(mask.shape)}")
    if problems:
        raise ArgumentError("; ".join(problems))
