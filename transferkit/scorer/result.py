"""What an evaluation found, as numbers, a table, JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.errors import ArgumentError, require
from transferkit.scorer.ap_rule import APRule
from transferkit.scorer.average_precision import INTERPOLATIONS
from transferkit.scorer.devkit_files import write_devkit_results
from transferkit.scorer.table import markdown_table, number_or_none, percent, plain_table


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval; see :func:`transferkit.scorer.bootstrap.bootstrap_intervals`."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassificationResult:
    """Average precision per class under every rule.

    Attributes:
        class_names: The C classes that were scored; background is not among them.
        num_images: N.
        positives: Per class, images with an object of it that is not difficult.
        difficult: Per class, images whose objects of it are all difficult.
        ap: Per rule, the AP of each class in 0..1; NaN for a class without positives.
        rule: The rule that is meant where none is named.
        intervals: Per class, the bootstrap interval of its AP under ``rule``; empty where none was asked for.
        mean_interval: The same for the mean.
        level: Of the intervals.
        scores: (N, C) float64, what was evaluated.
        image_ids: N names of the images, if they were given.
    """

    class_names: tuple[str, ...]
    num_images: int
    positives: tuple[int, ...]
    difficult: tuple[int, ...]
    ap: Mapping[APRule, tuple[float, ...]]
    rule: APRule
    intervals: tuple[Interval, ...] = ()
    mean_interval: Interval | None = None
    level: float = 0.95
    scores: Tensor | None = field(default=None, repr=False, compare=False)
    image_ids: tuple[str, ...] = field(default=(), repr=False)

    def mean_ap(self, rule: APRule | None = None) -> float:
        """Return the mean AP over the classes that have one; NaN if none has.

        Raises:
            ArgumentError: A rule that was not evaluated.
        """
        rule = rule or self.rule
        known = "one of those evaluated: " + "; ".join(map(str, self.ap))
        require(rule in self.ap, "rule", known, str(rule))
        known_ap = [value for value in self.ap[rule] if not math.isnan(value)]
        return sum(known_ap) / len(known_ap) if known_ap else math.nan

    @property
    def without_positives(self) -> tuple[str, ...]:
        """Classes that have no AP under ``rule`` and are left out of its mean."""
        pairs = zip(self.class_names, self.ap[self.rule], strict=True)
        return tuple(name for name, value in pairs if math.isnan(value))

    def table(self) -> list[list[str]]:
        """Return header and rows of the per-class table as text, AP in percent."""
        rules = self._shown_rules()
        interval = [f"{self.level:.0%} interval"] if self.intervals else []
        rows = [["class", "images", "difficult", *map(_column, rules), *interval]]
        for c, name in enumerate(self.class_names):
            values = [percent(self.ap[rule][c]) for rule in rules]
            spread = [_range(self.intervals[c])] if self.intervals else []
            rows.append([name, str(self.positives[c]), str(self.difficult[c]), *values, *spread])
        means = [percent(self.mean_ap(rule)) for rule in rules]
        spread = [_range(self.mean_interval)] if self.mean_interval else []
        rows.append(["mean", "", "", *means, *spread])
        return rows

    def notes(self) -> list[str]:
        """Return what the table does not say: the rule, what was left out, the mean under the other rules."""
        lines = [f"AP in % over {self.num_images} images; difficult objects are {self.rule.difficult}"]
        if self.without_positives:
            lines.append(f"no positives, left out of the mean: {', '.join(self.without_positives)}")
        others: dict[str, list[str]] = {}
        for rule in self.ap:
            if rule not in self._shown_rules():
                family = str(rule).removeprefix(f"{rule.interpolation}, ") + self._over(rule)
                others.setdefault(family, []).append(f"{rule.interpolation} {percent(self.mean_ap(rule))}")
        return lines + [f"mean with {family}: {', '.join(means)}" for family, means in others.items()]

    def _over(self, rule: APRule) -> str:
        """Over how many classes a rule's mean goes, where they are not those of the leading rule."""
        known, own = ([not math.isnan(value) for value in self.ap[each]] for each in (self.rule, rule))
        return "" if known == own else f", over {sum(own)} classes"

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        return "\n".join([plain_table(self.table()), *self.notes()])

    def to_markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        notes = "\n".join(f"- {note}" for note in self.notes())
        return f"{markdown_table(self.table())}\n\n{notes}\n"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON; NaN becomes ``None``."""
        classes = []
        for c, name in enumerate(self.class_names):
            entry: dict[str, Any] = {
                "name": name,
                "positives": self.positives[c],
                "difficult": self.difficult[c],
            }
            entry["ap"] = {str(rule): number_or_none(values[c]) for rule, values in self.ap.items()}
            if self.intervals:
                entry["interval"] = _bounds(self.intervals[c])
            classes.append(entry)
        return {
            "num_images": self.num_images,
            "rule": str(self.rule),
            "mean_ap": number_or_none(self.mean_ap()),
            "mean_interval": _bounds(self.mean_interval) if self.mean_interval else None,
            "level": self.level,
            "mean_ap_by_rule": {str(rule): number_or_none(self.mean_ap(rule)) for rule in self.ap},
            "without_positives": list(self.without_positives),
            "classes": classes,
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def write_devkit(
        self, folder: Path | str, *, image_set: str = "test", competition: str = "comp1"
    ) -> list[Path]:
        """Write the devkit's own result files, for others to score; see :func:`write_devkit_results`.

        Raises:
            ArgumentError: The result does not know the names of the images.
        """
        if self.scores is None or not self.image_ids:
            raise ArgumentError("the devkit's files name the images: give evaluate(image_ids=...)")
        return write_devkit_results(
            folder,
            self.scores,
            image_ids=self.image_ids,
            class_names=self.class_names,
            image_set=image_set,
            competition=competition,
        )

    def _shown_rules(self) -> list[APRule]:
        """The leading rule, then all interpolations that treat difficult objects as it does."""
        variants = [APRule(interpolation, self.rule.difficult) for interpolation in INTERPOLATIONS]
        return list(dict.fromkeys([self.rule, *(rule for rule in variants if rule in self.ap)]))


def _column(rule: APRule) -> str:
    ending = f" from {rule.minimum_score:g}" if rule.minimum_score > -math.inf else ""
    return rule.interpolation + ending


def _range(interval: Interval) -> str:
    return "-" if math.isnan(interval.low) else f"{percent(interval.low)} to {percent(interval.high)}"


def _bounds(interval: Interval) -> list[float | None]:
    return [number_or_none(interval.low), number_or_none(interval.high)]
