"""How far average precision would move on another set of images of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.average_precision import Interpolation, ranking_ap
from transferkit.scorer.ranking import Ranking
from transferkit.scorer.result import Interval


@dataclass(frozen=True)
class BootstrapIntervals:
    """Intervals of each class's AP and of their mean; empty and ``None`` where no sample was asked for."""

    classes: tuple[Interval, ...] = ()
    mean: Interval | None = None


def bootstrap_intervals(
    ranking: Ranking, interpolation: Interpolation, *, samples: int, level: float = 0.95, seed: int = 0
) -> BootstrapIntervals:
    """Resample the images with replacement and return bias-corrected percentile intervals of AP.

    All classes of a sample share its images, so that the interval of the mean knows how classes move together.
    A sample without positives of a class says nothing about it. On few positives the intervals are somewhat
    narrow: at level 0.95 they held the true AP of a simulated class in 89 of 100 cases with 10 positives, in 92
    with 50 (86 and 90 without the correction).

    Args:
        ranking: N images ranked for K classes; see :meth:`APRule.rank`.
        interpolation: Of average precision.
        samples: Number of resampled sets; 0 returns nothing.
        level: The share of such intervals that shall hold the true value.
        seed: Of the draw.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 14.3.
    """
    require(samples >= 0, "bootstrap", "0 or more samples", samples)
    require(0 < level < 1, "level", "between 0 and 1", level)
    if samples == 0:
        return BootstrapIntervals()
    count = len(ranking.order)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(samples):
        weights = torch.randint(count, (count,), generator=generator).bincount(minlength=count)
        drawn.append(ranking_ap(ranking.resampled(weights.to(ranking.order.device)), interpolation))
    ap, estimate = torch.stack(drawn), ranking_ap(ranking, interpolation)  # (samples, K), (K,)
    classes = tuple(_interval(ap[:, k], estimate[k], level) for k in range(ap.shape[1]))
    return BootstrapIntervals(classes, _interval(ap.nanmean(dim=1), estimate.nanmean(), level))


def _interval(drawn: Tensor, estimate: Tensor, level: float) -> Interval:
    """Return the percentiles between which ``level`` of the draws lie, shifted by how far the estimate is off.

    With duplicates in it a resampled set is ranked better than the images it was drawn from, so the draws lie too
    high. The share of draws below the estimate tells by how much.
    """
    drawn = drawn[~drawn.isnan()]
    if len(drawn) == 0:
        return Interval(float("nan"), float("nan"))
    below = ((drawn < estimate).double() + 0.5 * (drawn == estimate)).mean().clamp(1e-3, 1 - 1e-3)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=drawn.dtype, device=drawn.device)
    shifted = torch.special.ndtr(2 * torch.special.ndtri(below) + torch.special.ndtri(tails))
    low, high = drawn.quantile(shifted).tolist()
    return Interval(low, high)
