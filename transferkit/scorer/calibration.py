"""From scores to probabilities of presence and to yes or no, by photos that were held out of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from html import escape
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from transferkit.annotated import truth
from transferkit.display import text_table
from transferkit.errors import ArgumentError, CheckpointError, require
from transferkit.scorer.image_scorer import BACKGROUND
from transferkit.scorer.result import FEW, marked, percent

Criterion: TypeAlias = Literal["f1"] | float


class Cut(NamedTuple):
    """A place to cut a ranking, and what yes from there up says of the held-out photos.

    Attributes:
        value: Yes from this value up.
        said: Number of photos at or above it.
        right: Number of them that show the class.
        expected: Sum of their probabilities: how many of them should show it.
    """

    value: float
    said: int
    right: int
    expected: float


def find_cuts(values: Tensor, probs: Tensor, targets: Tensor) -> tuple[Cut, ...]:
    """Return the cuts just below each photo that shows the class, highest first; no other cut can be the best.

    A cut lies halfway to the next lower value, so that rounding moves no photo across it.

    Args:
        values: (n,); a photo of value 0 or less is never told to show the class.
        probs: (n,) in 0..1.
        targets: (n,) bool.

    Example:
        >>> values = torch.tensor([1.0, 0.5, 0.25])
        >>> [cut.value for cut in find_cuts(values, values, torch.tensor([True, False, True]))]
        [0.75, 0.125]
    """
    values, order = values.double().sort(descending=True)
    right, expected = targets[order].cumsum(0), probs[order].cumsum(0)
    lower = torch.cat([values[1:].clamp(min=0), values.new_zeros(1)])
    last = (values > lower).nonzero()[:, 0]  # the last photo of each tie
    gained = right[last].diff(prepend=right.new_zeros(1)) > 0
    last = last[gained]
    middle = (values + lower)[last] / 2
    middle = torch.where(middle > lower[last], middle, values[last])
    columns = middle, last + 1, right[last], expected[last]
    return tuple(Cut(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def best_cut(cuts: Sequence[Cut], positives: int, criterion: Criterion) -> Cut | None:
    r"""Return the cut of the best F1, or the lowest one whose precision is at least the one asked for.

    .. math:: F_1 = \frac{2 \, right}{said + positives}

    The precision of a cut is the lower of what was counted and what the probabilities expect: counted alone, the
    luckiest of many cuts would win and not hold on new photos.

    Args:
        cuts: From :func:`find_cuts`.
        positives: Number of photos that show the class.
        criterion: ``"f1"``, or a precision in 0..1.

    Returns:
        The cut; ``None`` where there is none.
    """
    if criterion == "f1":
        return max(cuts, key=lambda cut: 2 * cut.right / (cut.said + positives), default=None)
    precise = [cut for cut in cuts if min(cut.right, cut.expected) >= float(criterion) * cut.said]
    return precise[-1] if precise else None


@dataclass(frozen=True)
class Calibration:
    r"""What a classifier's scores mean: a probability of presence, and a threshold, for each class.

    The probability is a logistic curve of the score's logarithm (Platt, 1999):

    .. math:: P = \frac{1}{1 + e^{-(a + b \log s)}}

    Thresholds are chosen by the best F1, or by a precision asked for. A class with fewer than ten positives takes
    the probability at which all classes together are best; one whose precision cannot be reached on the held-out
    photos has the threshold infinity, and is never said.

    Attributes:
        class_names: K names, the background first.
        photos: Number of photos it was fitted on.
        positives: (K - 1) numbers of those that show each class.
        offsets: (K - 1) numbers a.
        slopes: (K - 1) numbers b, positive.
        floor: Least score whose logarithm is taken; a lower one counts as this.
        cuts: (K - 1) the places where a threshold may lie, on the score.
        shared_cuts: The same for all classes together, on the probability.
        criterion: ``"f1"``, or a precision in 0..1.

    References:
        Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods,
        1999.
    """

    class_names: tuple[str, ...]
    photos: int
    positives: tuple[int, ...]
    offsets: tuple[float, ...]
    slopes: tuple[float, ...]
    floor: float
    cuts: tuple[tuple[Cut, ...], ...]
    shared_cuts: tuple[Cut, ...]
    criterion: Criterion = "f1"

    def __post_init__(self) -> None:
        _require_criterion(self.criterion)
        count = len(self.class_names) - 1
        require(
            count >= 1 and self.class_names[0] == BACKGROUND,
            "class_names",
            "background, then the classes",
            self.class_names,
        )
        for name in ("positives", "offsets", "slopes", "cuts"):
            require(
                len(getattr(self, name)) == count, name, f"one for each of {count} classes", getattr(self, name)
            )
        require(all(map(math.isfinite, self.offsets)), "offsets", "finite", self.offsets)
        require(all(0 < slope < math.inf for slope in self.slopes), "slopes", "positive", self.slopes)
        require(0 < self.floor < math.inf, "floor", "positive", self.floor)

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """(K - 1) scores from which on a class is said to be there; infinity for never."""
        return tuple(
            self._shared_threshold(c) if n < FEW else cut.value if cut else math.inf
            for c, (n, cut) in enumerate(zip(self.positives, self._chosen, strict=True))
        )

    @cached_property
    def _chosen(self) -> tuple[Cut | None, ...]:
        pairs = zip(self.cuts, self.positives, strict=True)
        return tuple(best_cut(cuts, positives, self.criterion) for cuts, positives in pairs)

    def _shared_threshold(self, c: int) -> float:
        """Return the score at which class ``c`` has the probability that is best for all classes together."""
        cut = best_cut(self.shared_cuts, sum(self.positives), self.criterion)
        if cut is None or cut.value >= 1:
            return math.inf
        log = (math.log(cut.value) - math.log1p(-cut.value) - self.offsets[c]) / self.slopes[c]
        if log <= math.log(self.floor):
            return 0.0  # every score counts as the floor at least
        return math.exp(log) if log < 700 else math.inf

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
            criterion: ``"f1"`` for the best F1, or a precision in 0..1 that is to be reached, such as 0.9.
        """
        return replace(self, criterion=criterion)

    def table(self) -> list[list[str]]:
        """Return header and rows as text: each class's threshold and what it says of the held-out photos."""
        rows = [["class", "positives", "threshold", "said", "precision", "recall", "F1"]]
        columns = zip(self.class_names[1:], self.positives, self.thresholds, self._chosen, strict=True)
        for name, positives, threshold, cut in columns:
            rates = ["-"] * 4
            if positives >= FEW and cut:
                shares = cut.right / cut.said, cut.right / positives, 2 * cut.right / (cut.said + positives)
                rates = [str(cut.said), *map(percent, shares)]
            rows.append([marked(name, positives), str(positives), f"{threshold:.3g}", *rates])
        return rows

    def __str__(self) -> str:
        asked = "the best F1" if self.criterion == "f1" else f"a precision of {percent(self.criterion)} %"
        lines = text_table(self.table(), right=range(1, 7))
        lines.append(
            f"thresholds by {asked}, in % of the {self.photos} held-out photos that they were chosen on"
        )
        pairs = list(zip(self.class_names[1:], self.positives, self.thresholds, strict=True))
        if min(self.positives) < FEW:
            lines.append(f"* fewer than {FEW} positives: the threshold is that of all classes together")
        if never := [name for name, _, threshold in pairs if threshold == math.inf]:
            lines.append(f"never said, since no threshold reaches that: {', '.join(never)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "thresholds": self.thresholds}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration that :meth:`to_dict` described.

        Raises:
            CheckpointError: A value is missing, or is not what it must be.
        """
        try:
            given = {field.name: values[field.name] for field in fields(cls)}
            for name, kind in (("class_names", str), ("positives", int), ("offsets", float), ("slopes", float)):
                given[name] = tuple(kind(value) for value in given[name])
            given["cuts"] = tuple(_read_cuts(cuts) for cuts in given["cuts"])
            given["shared_cuts"] = _read_cuts(given["shared_cuts"])
            return cls(**given)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the calibration cannot be read: {error!r}; calibrate again") from error


def _read_cuts(rows: Any) -> tuple[Cut, ...]:
    return tuple(Cut(float(value), int(said), int(right), float(sum_)) for value, said, right, sum_ in rows)


def _require_criterion(criterion: Any) -> None:
    number = isinstance(criterion, (int, float)) and not isinstance(criterion, bool) and 0 < criterion <= 1
    require(criterion == "f1" or number, "criterion", "'f1', or a precision above 0 and up to 1", criterion)


def _curve(scores: Tensor, offsets: Tensor, slopes: Tensor, floor: float) -> Tensor:
    """Return the logistic curve of the scores' logarithms, (N, C); 0 for -inf."""
    found = torch.sigmoid(offsets + slopes * scores.clamp(min=floor).log())
    return found.masked_fill(scores == -math.inf, 0.0)


_PRIOR = (
    1.0,
    0.5,
)  # standard deviations of a class's offset and slope about those of all classes, in units of log s


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
        criterion: ``"f1"`` for the thresholds of the best F1, or a precision in 0..1 that is to be reached.
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
    scores, targets, counted = scores[:, 1:], targets[:, 1:], ~ignored[:, 1:]
    require(bool((targets & counted).any()), "targets", "true for some photo and class", "none")
    known = counted & scores.isfinite()
    positive = scores[known & (scores > 0)]
    floor = float(positive.min()) if len(positive) else 1.0
    offsets, slopes = _fit(scores.clamp(min=floor).log(), targets, known)
    probs = _curve(scores, offsets, slopes, floor)
    return Calibration(
        class_names=tuple(class_names),
        photos=len(scores),
        positives=tuple((targets & counted).sum(dim=0).tolist()),
        offsets=tuple(offsets.tolist()),
        slopes=tuple(slopes.tolist()),
        floor=floor,
        cuts=tuple(
            find_cuts(scores[on, c], probs[on, c], targets[on, c]) for c, on in enumerate(counted.unbind(dim=1))
        ),
        shared_cuts=find_cuts(probs[counted], probs[counted], targets[counted]),
        criterion=criterion,
    )


def _check(scores: Tensor, targets: Tensor, ignored: Tensor, class_names: Sequence[str]) -> None:
    problems = []
    if scores.ndim != 2 or len(scores) == 0 or scores.shape[1] < 2:
        problems.append(f"scores must be (N, K) with N >= 1 and K >= 2, got {tuple(scores.shape)}")
    for name, mask in (("targets", targets), ("ignore", ignored)):
        if mask.shape != scores.shape:
            problems.append(
                f"{name} must be of the scores' shape {tuple(scores.shape)}, got {tuple(mask.shape)}"
            )
    if len(class_names) != scores.shape[-1] or list(class_names)[:1] != [BACKGROUND]:
        problems.append(f"class_names must be one per column, the background first, got {list(class_names)}")
    wrong = scores.isnan() | (scores == math.inf) | ((scores < 0) & scores.isfinite())
    if wrong.any():
        problems.append(f"scores must be 0 or more, or -inf where unscored, got {int(wrong.sum())} others")
    if problems:
        raise ArgumentError("; ".join(problems))


def _fit(logs: Tensor, targets: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return (C,) offsets and slopes: one curve for all classes, then each class's own near it."""
    center, spread = logs[known].mean(), logs[known].std(correction=0).clamp(min=1e-6)
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
    for _ in range(100):
        probs = torch.sigmoid(found[:, 0] + found[:, 1] * x)
        error, curvature = weights * (probs - y), weights * probs * (1 - probs)
        slope = torch.stack([error.sum(0), (error * x).sum(0)], dim=1) + (found - mean) / deviation**2
        mixed = (curvature * x).sum(0)
        hessian = torch.stack([curvature.sum(0), mixed, mixed, (curvature * x * x).sum(0)], dim=1).reshape(
            -1, 2, 2
        )
        step = torch.linalg.solve(hessian + torch.diag(deviation**-2), slope)
        found = found - step / step.norm(dim=1, keepdim=True).clamp(min=1)
        found[:, 1].clamp_(min=1e-3)
    return found
