"""From scores to probabilities of presence and to yes or no, by photos that were held out of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from transferkit.annotated import shape_problems, truth, whole_numbers
from transferkit.errors import ArgumentError, CheckpointError, require
from transferkit.scorer.decisions import Decisions, decide
from transferkit.scorer.image_scorer import BACKGROUND
from transferkit.scorer.result import percent

Criterion: TypeAlias = Literal["f1"] | float


@dataclass(frozen=True, eq=False)
class Calibration:
    r"""What a classifier's scores mean: a probability of presence, and a threshold, for each class.

    The probability is a logistic curve of the score's logarithm (Platt, 1999):

    .. math:: P = \frac{1}{1 + e^{-(a + b \log s)}}

    Thresholds are chosen by F1 or by a precision; see :func:`f1_cut` and :func:`precision_cut`. The precision is that
    of all classes together, so a single class may have less of it or more. Where it cannot be reached on the held-out
    photos, all thresholds are infinite, and nothing is said.

    Attributes:
        class_names: K names, the background first.
        scores: (N, K) float64, of the held-out photos; kept to choose other thresholds.
        targets: (N, K) bool, what they show.
        ignored: (N, K) bool, what counts neither way.
        offsets: (K - 1) numbers a.
        slopes: (K - 1) numbers b, positive.
        floor: Least score whose logarithm is taken; a lower one counts as this.
        criterion: ``"f1"``, or a precision between 0 and 1.

    References:
        Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods,
        1999.
    """

    class_names: tuple[str, ...]
    scores: Tensor = field(repr=False)
    targets: Tensor = field(repr=False)
    ignored: Tensor = field(repr=False)
    offsets: tuple[float, ...] = field(repr=False)
    slopes: tuple[float, ...] = field(repr=False)
    floor: float = field(repr=False)
    criterion: Criterion = "f1"

    def __post_init__(self) -> None:
        number = isinstance(self.criterion, float) and 0 < self.criterion < 1
        constraint = "'f1', or a precision between 0 and 1"
        require(self.criterion == "f1" or number, "criterion", constraint, self.criterion)
        _check(self.scores, self.targets, self.ignored, self.class_names)
        count = len(self.class_names) - 1
        for name, values, least in (("offsets", self.offsets, -math.inf), ("slopes", self.slopes, 0)):
            fits = len(values) == count and all(least < value < math.inf for value in values)
            require(fits, name, f"{count} finite numbers above {least}", values)
        require(0 < self.floor < math.inf, "floor", "positive and finite", self.floor)

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """(K - 1) scores from which on a class is said to be there; infinity for never."""
        probs, counted = self.probs(self.scores)[:, 1:], ~self.ignored[:, 1:]
        if self.criterion == "f1":
            cuts = [f1_cut(column[on]) for column, on in zip(probs.unbind(1), counted.unbind(1), strict=True)]
        else:
            cut = precision_cut(probs[counted], self.targets[:, 1:][counted], float(self.criterion))
            cuts = [cut] * probs.shape[1]
        return tuple(self._score_at(c, cut) for c, cut in enumerate(cuts))

    def _score_at(self, c: int, prob: float) -> float:
        """Return the score at which class ``c`` has a probability."""
        if not 0 < prob < 1:
            return math.inf
        log = (math.log(prob) - math.log1p(-prob) - self.offsets[c]) / self.slopes[c]
        if log <= math.log(self.floor):
            return 0.0  # every score counts as the floor at least
        return math.exp(log) if log < 700 else math.inf

    @cached_property
    def decisions(self) -> Decisions:
        """Precision, recall and reliability on the held-out photos themselves, a little better than on new ones."""
        return self.decided(self.scores, self.targets, self.ignored)

    def decided(self, scores: Tensor, targets: Tensor, ignored: Tensor, level: float = 0.95) -> Decisions:
        """Return how often yes or no is right.

        Args:
            scores: (N, K).
            targets: (N, K) bool, what the photos show.
            ignored: (N, K) bool, what counts neither way.
            level: Of the intervals.
        """
        labels, probs = self.labels(scores)[:, 1:], self.probs(scores)[:, 1:]
        counted = ~ignored[:, 1:]
        return decide(labels, probs, targets[:, 1:], counted, self.class_names[1:], self.thresholds, level)

    def probs(self, scores: Tensor) -> Tensor:
        """Return probabilities of presence.

        Args:
            scores: (N, K), ``-inf`` where unscored.

        Returns:
            (N, K) float64 on the scores' device; 0 where unscored, and NaN for the background, which is no class
            that a photo shows.

        Raises:
            ArgumentError: Another number of classes, or NaN scores.
        """
        scores = self._scores(scores)
        offsets, slopes = (scores.new_tensor(values) for values in (self.offsets, self.slopes))
        found = _curve(scores[:, 1:], offsets, slopes, self.floor)
        return torch.cat([torch.full_like(scores[:, :1], math.nan), found], dim=1)

    def labels(self, scores: Tensor) -> Tensor:
        """Return the classes that are said to be there.

        Args:
            scores: (N, K), ``-inf`` where unscored.

        Returns:
            (N, K) bool on the scores' device; false for the background.

        Raises:
            ArgumentError: Another number of classes, or NaN scores.
        """
        scores = self._scores(scores)
        return scores >= scores.new_tensor([math.inf, *self.thresholds])

    def _scores(self, scores: Tensor) -> Tensor:
        shape, count = tuple(scores.shape), len(self.class_names)
        require(len(shape) == 2 and shape[1] == count, "scores", f"of shape (N, {count})", shape)
        require(not bool(scores.isnan().any()), "scores", "numbers, or -inf where unscored", "NaN")
        return scores.detach().double()

    def with_thresholds(self, criterion: Criterion) -> Calibration:
        """Return a copy with other thresholds.

        Args:
            criterion: ``"f1"`` for the best F1, or a precision between 0 and 1, such as 0.9.
        """
        return replace(self, criterion=criterion)

    def __str__(self) -> str:
        asked = "best F1" if self.criterion == "f1" else f"a precision of {percent(float(self.criterion))} %"
        lines = [str(self.decisions), f"thresholds chosen on these photos by {asked}"]
        if self.criterion != "f1" and min(self.thresholds) == math.inf:
            lines.append("no threshold reaches it on so few photos, so nothing is said; ask for less precision")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; targets are 1, 0, or -1 where ignored."""
        targets = self.targets.long().masked_fill(self.ignored, -1)
        tables = {"scores": self.scores.tolist(), "targets": targets.tolist()}
        curves = {"offsets": list(self.offsets), "slopes": list(self.slopes), "floor": self.floor}
        return {"class_names": list(self.class_names), "criterion": self.criterion, **curves, **tables}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration that :meth:`to_dict` described; a score of ``None``, as JSON has it, is ``-inf``.

        Raises:
            CheckpointError: A value is missing, or is not what it must be.
        """
        try:
            rows = [[-math.inf if score is None else score for score in row] for row in values["scores"]]
            targets = whole_numbers("targets", values["targets"])
            known = bool(((targets >= -1) & (targets <= 1)).all())
            require(known, "targets", "1, 0, or -1 where ignored", values["targets"])
            curves = {name: tuple(map(float, values[name])) for name in ("offsets", "slopes")}
            return cls(
                class_names=tuple(values["class_names"]),
                scores=torch.tensor(rows, dtype=torch.float64),
                targets=targets == 1,
                ignored=targets == -1,
                floor=float(values["floor"]),
                criterion=values["criterion"],
                **curves,
            )
        except (LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"the calibration cannot be read: {error!r:.300}; calibrate again") from error


def _curve(scores: Tensor, offsets: Tensor, slopes: Tensor, floor: float) -> Tensor:
    """Return the logistic curve of the scores' logarithms, (N, C); 0 for -inf."""
    found = torch.sigmoid(offsets + slopes * scores.clamp(min=floor).log())
    return found.masked_fill(scores == -math.inf, 0.0)


# Where to cut: yes from this probability on.


def f1_cut(probs: Tensor) -> float:
    r"""Return the probability to cut at for the best F1 that the probabilities expect.

    .. math:: F_1 = \frac{2 \sum_{n \le k} P_n}{k + \sum_n P_n} \quad\text{for yes to the first } k

    What they expect holds better on new photos than what was counted, where the luckiest of all cuts wins: 62 against
    58 to 60 % mean F1, over random splits of 500 VOC photos.

    Args:
        probs: (n,) of one class.

    Returns:
        Halfway between the last yes and the first no, so that rounding moves no photo across.

    Example:
        >>> round(f1_cut(torch.tensor([0.9, 0.8, 0.1, 0.1])), 3)
        0.45
    """
    probs = probs.sort(descending=True).values
    said = torch.arange(1, len(probs) + 1, device=probs.device)
    expected = 2 * probs.cumsum(0) / (said + probs.sum())
    return _halfway(probs, int(expected.argmax())) if len(probs) else math.inf


_CAUTION = 0.5  # standard deviations


def precision_cut(probs: Tensor, targets: Tensor, precision: float) -> float:
    r"""Return the lowest probability to cut at for a precision.

    The precision of a cut is Wilson's lower limit at :math:`z = 0.5`, since the counted one is that of a lucky cut:

    .. math:: \frac{r + z^2/2 - z\sqrt{r(n - r)/n + z^2/4}}{n + z^2}

    for r right of n yes. All classes are cut at one probability, as one class alone has too few photos. A precision
    of 0.9 asked for became 0.90 on new photos, with 70, 150 or 300 held-out ones (20 random splits of 500 VOC photos,
    standard deviation 0.03 to 0.04); cut class by class as counted, 0.80 to 0.87.

    Args:
        probs: (n,) of all photos and classes.
        targets: (n,) bool.
        precision: Between 0 and 1.

    Returns:
        Halfway between the last yes and the first no; infinity where no cut is as precise.

    Example:
        >>> probs, targets = torch.tensor([0.9, 0.8, 0.7, 0.2]), torch.tensor([True, True, True, False])
        >>> round(precision_cut(probs, targets, 0.9), 3), precision_cut(probs, targets, 0.99)
        (0.45, inf)
    """
    probs, order = probs.sort(descending=True)
    right = targets[order].double().cumsum(0)
    said, z = torch.arange(1, len(probs) + 1, dtype=right.dtype, device=probs.device), _CAUTION
    low = (right + z * z / 2 - z * (right * (said - right) / said + z * z / 4).sqrt()) / (said + z * z)
    ends = torch.cat([probs[1:] < probs[:-1], probs.new_ones(min(len(probs), 1), dtype=torch.bool)])
    precise = ((low >= precision) & ends).nonzero()
    return _halfway(probs, int(precise[-1])) if len(precise) else math.inf


def _halfway(falling: Tensor, last: int) -> float:
    following = falling[last + 1] if last + 1 < len(falling) else 0.0
    return float((falling[last] + following) / 2)


# Standard deviations of a class's offset and slope about those of all classes, per standard deviation of log s. On
# new photos the curves were about as likely up to (0.7, 0.4); at (0.3, 0.2) thresholds were most often as precise as
# asked.
_PRIOR = (0.3, 0.2)


def calibrate(
    scores: Tensor,
    targets: Tensor,
    *,
    class_names: Sequence[str],
    criterion: Criterion = "f1",
    ignore: Tensor | None = None,
) -> Calibration:
    """Fit probabilities of presence and choose thresholds, on photos that the classifier was not trained on.

    Each class has a curve of its own, drawn toward that of all classes together by as much as it has few photos.

    Args:
        scores: (N, K) scores of 0 or more, or ``-inf`` where unscored.
        targets: (N, K) bool or 0 and 1: the photo shows the class.
        class_names: K names, the background first.
        criterion: ``"f1"`` for the thresholds of the best F1, or a precision between 0 and 1.
        ignore: (N, K) bool or 0 and 1: photos that count neither way, such as those with only difficult objects.

    Raises:
        ArgumentError: Shapes or values that do not fit, or no photo that shows a class.

    Example:
        >>> scores = torch.tensor([[0, 0.9], [0, 0.8], [0, 0.2], [0, 0.1]], dtype=torch.float64)
        >>> targets = torch.tensor([[0, 1], [0, 1], [0, 0], [0, 0]])
        >>> calibration = calibrate(scores, targets, class_names=["background", "cat"])
        >>> calibration.labels(scores)[:, 1].tolist()
        [True, True, False, False]
    """
    scores, targets = torch.as_tensor(scores).detach().double().cpu(), truth("targets", targets).cpu()
    ignored = torch.zeros_like(targets) if ignore is None else truth("ignore", ignore).cpu()
    _check(scores, targets, ignored, class_names)
    known = (~ignored & scores.isfinite())[:, 1:]
    require(bool(targets[:, 1:][known].any()), "targets", "true for some photo and class", "none")
    positive = scores[:, 1:][known & (scores[:, 1:] > 0)]
    floor = float(positive.min()) if len(positive) else 1.0
    curves = _fit(scores[:, 1:].clamp(min=floor).log(), targets[:, 1:], known)
    offsets, slopes = (tuple(values.tolist()) for values in curves)
    return Calibration(tuple(class_names), scores, targets, ignored, offsets, slopes, floor, criterion)


def _check(scores: Tensor, targets: Tensor, ignored: Tensor, class_names: Sequence[str]) -> None:
    problems = []
    if scores.ndim != 2 or len(scores) == 0 or scores.shape[1] < 2:
        problems.append(f"scores must be (N, K) with N >= 1 and K >= 2, got {tuple(scores.shape)}")
    problems += shape_problems(scores, targets=targets, ignore=ignored)
    if len(class_names) != scores.shape[-1] or list(class_names)[:1] != [BACKGROUND]:
        problems.append(f"class_names must be one per column, the background first, got {list(class_names)}")
    wrong = scores.isnan() | (scores == math.inf) | ((scores < 0) & scores.isfinite())
    if wrong.any():
        problems.append(f"scores must be 0 or more, or -inf where unscored, got {int(wrong.sum())} others")
    if problems:
        raise ArgumentError("; ".join(problems))


def _fit(logs: Tensor, targets: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return (C,) offsets and slopes: one curve for all classes, then each class's own near it."""
    center, spread = logs[known].mean(), logs[known].std(correction=0)
    spread = torch.where(spread > 1e-6, spread, 1.0)  # of equal scores
    x, y, weights = (logs - center) / spread, targets.double(), known.double()
    start, free = x.new_tensor([0.0, 1.0]), x.new_tensor([30.0, 30.0])
    together = _newton(x.reshape(-1, 1), y.reshape(-1, 1), weights.reshape(-1, 1), start, free)[0]
    offsets, slopes = _newton(x, y, weights, together, x.new_tensor(_PRIOR)).unbind(dim=1)
    return offsets - slopes * center / spread, slopes / spread


def _newton(x: Tensor, y: Tensor, weights: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    r"""Return (C, 2) offsets and slopes of logistic curves, by Newton's method with steps of at most 1.

    .. math:: \min_{a, b > 0} \; \sum_n w_n \log(1 + e^{\mp (a + b x_n)}) + \frac{(a - \mu_a)^2}{2\sigma_a^2} +
        \frac{(b - \mu_b)^2}{2\sigma_b^2}
    """
    found = mean.expand(x.shape[1], 2).clone()
    for _ in range(50):
        probs = torch.sigmoid(found[:, 0] + found[:, 1] * x)
        error, curvature = weights * (probs - y), weights * probs * (1 - probs)
        slope = torch.stack([error.sum(0), (error * x).sum(0)], dim=1) + (found - mean) / deviation**2
        second = [(curvature * x**power).sum(0) for power in (0, 1, 1, 2)]
        hessian = torch.stack(second, dim=1).reshape(-1, 2, 2) + torch.diag(deviation**-2)
        step = torch.linalg.solve(hessian, slope)
        found = found - step / step.norm(dim=1, keepdim=True).clamp(min=1)
        found[:, 1].clamp_(min=1e-3)
    return found
