"""How often yes or no is right, class by class, and how far probabilities of presence can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torch import Tensor

from transferkit.display import as_csv, markdown_table, summary_table
from transferkit.scorer.result import FEW, Interval, few_positives, marked, number_or_none, percent, wilson


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
    return Reliability(
        tuple(counts.long().tolist()), tuple((sums / counts).tolist()), tuple((shown / counts).tolist())
    )


_COLUMNS = {"threshold": "thresholds"} | {
    name: name for name in ("photos", "positives", "said", "right", "precision", "recall", "f1")
}  # of a class, by their names in files


@dataclass(frozen=True)
class Decisions:
    """Yes or no of N photos for C classes, against what they show; the background is not among the classes.

    Attributes:
        class_names: C names.
        thresholds: C scores from which on the answer was yes.
        photos: C numbers of photos that count.
        positives: Of them, how many show the class.
        said: Of them, to how many the answer was yes.
        right: How many of those show the class.
        confused: (C, C) int64: of the photos that show class i, to how many class j was said though absent.
        reliability: Of the probabilities.
        level: Of the intervals.
        labels: (N, C) bool, the answers.
        probs: (N, C) float64, the probabilities of presence.
    """

    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    photos: tuple[int, ...]
    positives: tuple[int, ...]
    said: tuple[int, ...]
    right: tuple[int, ...]
    confused: Tensor = field(repr=False, compare=False)
    reliability: Reliability
    level: float
    labels: Tensor = field(repr=False, compare=False)
    probs: Tensor = field(repr=False, compare=False)

    @property
    def precision(self) -> tuple[float, ...]:
        """Share of right answers among the yes; NaN for a class of fewer than ten positives, or never said."""
        return self._shares(self.said)

    @property
    def recall(self) -> tuple[float, ...]:
        """Share of the photos that show the class to which the answer was yes; NaN below ten of them."""
        return self._shares(self.positives)

    @property
    def f1(self) -> tuple[float, ...]:
        """Harmonic mean of precision and recall; NaN for a class of fewer than ten positives."""
        sizes = [(said + positives) / 2 for said, positives in zip(self.said, self.positives, strict=True)]
        return self._shares(sizes)

    def _shares(self, sizes: Sequence[float]) -> tuple[float, ...]:
        rows = zip(self.right, sizes, self.positives, strict=True)
        return tuple(right / size if n >= FEW and size else math.nan for right, size, n in rows)

    def interval(self, c: int, of: str) -> Interval:
        """Return Wilson's interval of a class's precision or recall; NaN below ten positives, or ten said."""
        few = self.positives[c] < FEW
        count = 0 if few else self.said[c] if of == "precision" else self.positives[c]
        return wilson(self.right[c], count, self.level)

    def table(self) -> list[list[str]]:
        """Return header, a row for each class and one for their mean as text, shares in percent."""
        spread = f"{self.level:.0%} interval"
        rows = [
            ["class", "positives", "threshold", "said", "right", "precision", spread, "recall", spread, "F1"]
        ]
        columns = (self.positives, self.said, self.right, self.precision, self.recall, self.f1)
        for c, (positives, said, right, *shares) in enumerate(zip(*columns, strict=True)):
            precision, recall, f1 = map(percent, shares)
            spreads = [str(self.interval(c, of)) for of in ("precision", "recall")]
            counts = [str(positives), f"{self.thresholds[c]:.3g}", str(said), str(right)]
            rows.append(
                [marked(self.class_names[c], positives), *counts, precision, spreads[0], recall, spreads[1], f1]
            )
        means = [percent(_mean(shares)) for shares in (self.precision, self.recall, self.f1)]
        return [*rows, ["mean", "", "", "", "", means[0], "", means[1], "", means[2]]]

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        lines = [f"yes or no for {len(self.labels)} photos; intervals are Wilson's"]
        error = percent(self.reliability.error)
        return [
            *lines,
            *few_positives(self.positives),
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
        rows = [
            (self.class_names[i], self.class_names[j], int(self.confused[i, j]), self.positives[i])
            for i, j in self.confused.nonzero().tolist()
            if self.positives[i] >= FEW
        ]
        return sorted(rows, key=lambda row: -row[2] / row[3])[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the photos' own values as plain values for JSON; NaN becomes ``None``."""
        classes = [
            {
                "name": name,
                **{key: number_or_none(getattr(self, column)[c]) for key, column in _COLUMNS.items()},
            }
            for c, name in enumerate(self.class_names)
        ]
        bins = {name: list(map(number_or_none, values)) for name, values in vars(self.reliability).items()}
        error = number_or_none(self.reliability.error)
        return {"classes": classes, "confused": self.confused.tolist(), "reliability": {**bins, "error": error}}

    def to_csv(self) -> str:
        """Return a line of CSV for each class, shares in 0..1, with the limits of their intervals."""
        columns: dict[str, Sequence[Any]] = {"class": self.class_names}
        columns |= {name: getattr(self, column) for name, column in _COLUMNS.items()}
        for of in ("precision", "recall"):
            limits = [self.interval(c, of) for c in range(len(self.class_names))]
            columns |= {f"{of} {end}": [getattr(limit, end) for limit in limits] for end in ("low", "high")}
        return as_csv([list(columns), *zip(*columns.values(), strict=True)])

    def __str__(self) -> str:
        return "\n".join([summary_table(self.table()), *self.notes()])

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        return f"<pre>{escape(str(self))}</pre>"

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        return f"{markdown_table(self.table())}\n\n" + "".join(f"- {note}\n" for note in self.notes())


def decide(
    labels: Tensor,
    probs: Tensor,
    targets: Tensor,
    ignore: Tensor,
    *,
    class_names: Sequence[str],
    thresholds: Sequence[float],
    level: float = 0.95,
) -> Decisions:
    """Count how often yes or no is right.

    Args:
        labels: (N, C) bool, the answers.
        probs: (N, C) in 0..1.
        targets: (N, C) bool, what the photos show.
        ignore: (N, C) bool, what counts neither way.
        class_names: C names, without the background.
        thresholds: C scores from which on the answer was yes.
        level: Of the intervals.
    """
    counted = ~ignore
    shown, said = targets & counted, labels & counted
    alarms = said & ~targets
    counts = (counted, shown, said, shown & said)
    photos, positives, yes, right = (tuple(mask.sum(dim=0).tolist()) for mask in counts)
    confused = (shown.double().T @ alarms.double()).long()
    curve = reliability(probs[counted], targets[counted])
    names, limits = tuple(class_names), tuple(thresholds)
    return Decisions(names, limits, photos, positives, yes, right, confused, curve, level, labels, probs)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
