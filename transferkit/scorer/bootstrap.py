"""How far average precision would move on another set of images of the same kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    """Resample the images with replacement and return the percentile interval of AP.

    All classes of a sample share its images, so that the interval of the mean knows how classes move together.
    A sample without positives of a class says nothing about it.

    Args:
        ranking: N images ranked for K classes; see :meth:`APRule.rank`.
        interpolation: Of average precision.
        samples: Number of resampled sets; 0 returns nothing.
        level: The share of samples inside the interval.
        seed: Of the draw.
    """
    require(samples >= 0, "bootstrap samples", "0 or more", samples)
    require(0 < level < 1, "level", "between 0 and 1", level)
    if samples == 0:
        return BootstrapIntervals()
    count = len(ranking.order)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(samples):
        weights = torch.randint(count, (count,), generator=generator).bincount(minlength=count)
        drawn.append(ranking_ap(ranking.resampled(weights.to(ranking.order.device)), interpolation))
    ap = torch.stack(drawn)  # (samples, K)
    bounds = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=ap.dtype, device=ap.device)
    low, high = ap.nanquantile(bounds, dim=0).tolist()
    mean_low, mean_high = ap.nanmean(dim=1).nanquantile(bounds).tolist()
    return BootstrapIntervals(tuple(map(Interval, low, high)), Interval(mean_low, mean_high))
