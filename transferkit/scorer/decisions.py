"""How often yes or no is right, class by class, and how far probabilities of presence can be believed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from transferkit.display import as_csv, as_json, summary_table
from transferkit.scorer.result import FEW, Interval, few_positives, marked, percent, wilson


@dataclass(frozen=True)
class Reliability:
    """Probabilities of presence in bins of equal width, over all photos and classes together.

    Attributes:
        counts: Number of probabilities in each bin.
        expected: Their mean; NaN for an empty bin.
        present: Share of them whose photo shows the class; NaN for an empty bin.
    """

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    present: tuple[float, ...]

    @property
    def error(self) -> float:
        r"""Expected calibration error, :math:`\sum_b n_b |expected_b - present_b| / \sum_b n_b`."""
        bins = [row for row in zip(self.counts, self.expected, self.present, strict=True) if row[0]]
        gaps = sum(count * abs(expected - present) for count, expected, present in bins)
        return gaps / sum(self.counts) if bins else math.nan


def reliability(probs: Tensor, targets: Tensor, bins: int = 10) -> Reliability:
    """Compare probabilities with how often they come true.

    Args:
        probs: (n,) in 0..1.
        targets: (n,) bool.
        bins: Number of bins.

    Example:
        >>> curve = reliability(torch.tensor([0.1, 0.1, 0.9, 0.9]), torch.tensor([False, False, True, False]), 2)
        >>> curve.counts, curve.present, round(curve.error, 3)
        ((2, 2), (0.0, 0.5), 0.25)
    """
    place = (probs * bins).long().clamp(max=bins - 1)
    counts, sums, shown = (
        torch.zeros(bins, dtype=torch.float64).index_add(0, place, values.double())
        for values in (torch.ones_like(probs), probs, targets)
    )
    shares = (tuple((total / counts).tolist()) for total in (sums, shown))
    return Reliability(tuple(counts.long().tolist()), *shares)


@dataclass(frozen=True)
class ClassDecisions:
    """Yes or no for one class.

    Attributes:
        name: Of the class.
        threshold: Score from which on the answer was yes.
        photos: Number of photos that count.
        positives: Of them, how many show the class.
        said: Of them, to how many the answer was yes.
        right: How many of those show the class.
    """

    name: str
    threshold: float
    photos: int
    positives: int
    said: int
    right: int

    @property
    def precision(self) -> float:
        """Share of right answers among the yes; NaN below ten positives, or where it was never said."""
        return self._share(self.said)

    @property
    def recall(self) -> float:
        """Share of the photos that show the class to which the answer was yes; NaN below ten of them."""
        return self._share(self.positives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN below ten positives."""
        return self._share((self.said + self.positives) / 2)

    def _share(self, count: float) -> float:
        return self.right / count if self.positives >= FEW and count else math.nan

    def interval(self, of: Literal["precision", "recall"], level: float = 0.95) -> Interval:
        """Return Wilson's interval; NaN below ten positives, and that of the precision below ten yes."""
        count = self.said if of == "precision" else self.positives
        return wilson(self.right, count if self.positives >= FEW else 0, level)

    def to_dict(self, level: float = 0.95) -> dict[str, Any]:
        """Return everything as plain values, NaN where too little is known."""
        ends = ((of, self.interval(of, level)) for of in _SHARES)
        limits = {f"{of} {end}": value for of, interval in ends for end, value in vars(interval).items()}
        return {**vars(self), "precision": self.precision, "recall": self.recall, "f1": self.f1, **limits}


_SHARES: tuple[Literal["precision", "recall"], ...] = ("precision", "recall")


@dataclass(frozen=True, eq=False)
class Decisions:
    """Yes or no of N photos for C classes, against what they show; the background is not among the classes.

    Attributes:
        classes: C counts.
        confused: (C, C) int64: of the photos that show class i, to how many class j was said though absent.
        reliability: Of the probabilities.
        level: Of the intervals.
        labels: (N, C) bool, the answers.
        probs: (N, C) float64, the probabilities of presence.
    """

    classes: tuple[ClassDecisions, ...]
    confused: Tensor = field(repr=False)
    reliability: Reliability
    level: float
    labels: Tensor = field(repr=False)
    probs: Tensor = field(repr=False)

    def table(self) -> list[list[str]]:
        """Return header, a row for each class and one for their mean as text, shares in percent."""
        spread = f"{self.level:.0%} interval"
        rows = [
            ["class", "positives", "threshold", "said", "right", "precision", spread, "recall", spread, "F1"]
        ]
        for one in self.classes:
            counts = [str(one.positives), f"{one.threshold:.3g}", str(one.said), str(one.right)]
            shares = [
                t for of in _SHARES for t in (percent(getattr(one, of)), str(one.interval(of, self.level)))
            ]
            rows.append([marked(one.name, one.positives), *counts, *shares, percent(one.f1)])
        precision, recall, f1 = (
            percent(torch.tensor([getattr(one, of) for one in self.classes]).nanmean().item())
            for of in (*_SHARES, "f1")
        )
        return [*rows, ["mean", "", "", "", "", precision, "", recall, "", f1]]

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        error = percent(self.reliability.error)
        return [
            f"yes or no for {len(self.labels)} photos; intervals are Wilson's",
            *few_positives([one.positives for one in self.classes]),
            f"probabilities are off by {error} % on average (expected calibration error)",
        ]

    def most_confused(self, count: int = 10) -> list[tuple[str, str, int, int]]:
        """Return the pairs of classes that are confused most often.

        Args:
            count: How many at most.

        Returns:
            Rows of the class shown, the class said though absent, in how many photos, and of how many that show the
            first; the largest share first, classes of fewer than ten positives left out.
        """
        pairs = (
            (self.classes[i], self.classes[j], int(self.confused[i, j])) for i, j in self.confused.nonzero()
        )
        rows = [(one.name, other.name, n, one.positives) for one, other, n in pairs if one.positives >= FEW]
        return sorted(rows, key=lambda row: -row[2] / row[3])[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the photos' own values for JSON; NaN and infinities become ``None``."""
        everything = {
            "level": self.level,
            "classes": [one.to_dict(self.level) for one in self.classes],
            "confused": self.confused.tolist(),
            "reliability": {**vars(self.reliability), "error": self.reliability.error},
        }
        finite: dict[str, Any] = json.loads(as_json(everything))
        return finite

    def to_csv(self) -> str:
        """Return a line of CSV for each class, shares in 0..1, with the limits of their intervals."""
        rows = [one.to_dict(self.level) for one in self.classes]
        return as_csv([list(rows[0]), *(list(row.values()) for row in rows)])

    def __str__(self) -> str:
        return "\n".join([summary_table(self.table()), *self.notes()])


def decide(
    labels: Tensor,
    probs: Tensor,
    targets: Tensor,
    counted: Tensor,
    class_names: Sequence[str],
    thresholds: Sequence[float],
    level: float = 0.95,
) -> Decisions:
    """Count how often yes or no is right.

    Args:
        labels: (N, C) bool, the answers.
        probs: (N, C) in 0..1.
        targets: (N, C) bool, what the photos show.
        counted: (N, C) bool, false where neither answer is right or wrong.
        class_names: C names, without the background.
        thresholds: C scores from which on the answer was yes.
        level: Of the intervals.
    """
    shown, said = targets & counted, labels & counted
    counts = (mask.sum(dim=0).tolist() for mask in (counted, shown, said, shown & said))
    classes = tuple(ClassDecisions(*row) for row in zip(class_names, thresholds, *counts, strict=True))
    confused = (shown.double().T @ (said & ~targets).double()).long()
    return Decisions(classes, confused, reliability(probs[counted], targets[counted]), level, labels, probs)
