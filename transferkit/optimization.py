"""How training is steered, as frozen values that a recipe holds: rates, averages of weights, when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transferkit.errors import require

__all__ = ["EarlyStopping", "HeldOut", "HeldOutChoice", "WarmupCosine", "WeightAverage", "hold_out"]


@dataclass(frozen=True)
class WarmupCosine:
    """A linear rise over the first epochs, then half a cosine down to the end.

    Attributes:
        epochs: When the end is reached, the rise included; from there on the rate stays.
        warmup: Epochs of the rise; a fraction of one will often do. Steps of a new head are large and point nowhere
            at first, and momentum and transferred layers would be thrown by them.
        final: The rate at the end, as a multiple of the highest.

    Example:
        >>> schedule = WarmupCosine(epochs=10, warmup=2)
        >>> [round(schedule.factor(epoch), 3) for epoch in (0, 0.5, 1, 2, 6, 10, 11)]
        [0.0, 0.25, 0.5, 1.0, 0.5, 0.0, 0.0]

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017; Goyal et al.,
        "Accurate, Large Minibatch SGD", 2017, section 2.2.
    """

    epochs: float
    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        require(self.epochs > 0, "epochs", "positive", self.epochs)
        require(0 <= self.warmup < self.epochs, "warmup", f"in [0, epochs={self.epochs:g})", self.warmup)
        require(0 <= self.final <= 1, "final", "in [0, 1]", self.final)

    def factor(self, epoch: float) -> float:
        """Return the rate as a multiple of the highest.

        Args:
            epoch: Epochs that have passed, with their fraction: 1.5 is the middle of the second.
        """
        if epoch < self.warmup:
            return epoch / self.warmup
        passed = min(1.0, (epoch - self.warmup) / (self.epochs - self.warmup))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * passed)) / 2

    def over(self, epochs: float) -> WarmupCosine:
        """Return the same course over another number of epochs; the rise keeps its share."""
        return WarmupCosine(epochs, self.warmup * epochs / self.epochs, self.final)

    def __str__(self) -> str:
        rise = f"warm-up over {self.warmup:g} epochs, " if self.warmup else ""
        return f"{rise}cosine to x{self.final:g} after {self.epochs:g} epochs"


# An average of the weights that training passes through, which is often better than the last of them.


@dataclass(frozen=True)
class WeightAverage:
    """Which weights are averaged, and how much each counts.

    Attributes:
        decay: What the average keeps of itself each time, in (0, 1): an exponential moving average, that forgets
            about ``1 / (1 - decay)`` times back. Early on it is held at ``(1 + n) / (10 + n)`` for the n-th time,
            so that the first weights do not weigh on a short run. ``None``: all count alike (stochastic weight
            averaging).
        start: Epochs that pass before the first time, with their fraction.
        every: ``"step"`` of the optimizer, or ``"epoch"``.

    Example:
        >>> ema, swa = WeightAverage(decay=0.999), WeightAverage(decay=None, start=7, every="epoch")
        >>> [swa.due(step, steps_per_epoch=10) for step in (1, 70, 79, 80)]
        [False, False, False, True]

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; Polyak and
        Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    decay: float | None = 0.999
    start: float = 0.0
    every: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        require(self.decay is None or 0 < self.decay < 1, "decay", "in (0, 1), or None", self.decay)
        require(self.start >= 0, "start", "zero or positive", self.start)
        require(self.every in ("step", "epoch"), "every", "'step' or 'epoch'", self.every)

    def due(self, steps: int, steps_per_epoch: int) -> bool:
        """Tell whether the weights after so many steps of the optimizer are averaged."""
        started = steps > self.start * steps_per_epoch
        return started and (self.every == "step" or steps % steps_per_epoch == 0)

    def keep(self, count: int) -> float:
        """Return what an average of ``count`` weights keeps of itself when the next come in."""
        return count / (count + 1) if self.decay is None else min(self.decay, (1 + count) / (10 + count))

    def of(self, model: nn.Module) -> AveragedModel:
        """Return torch's averaged model: a copy of ``model`` whose ``update_parameters`` takes in its weights.

        Buffers are copied as they are. After an average with equal weights the statistics of batch norms that are
        trained are those of the last weights: refresh them with :func:`torch.optim.swa_utils.update_bn`.
        """
        averaged = AveragedModel(model, multi_avg_fn=self._mix)
        averaged.requires_grad_(False)
        return averaged

    @torch.no_grad()
    def _mix(self, averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(weights), 1 - self.keep(int(count)))

    def __str__(self) -> str:
        how = "equally" if self.decay is None else f"with decay {self.decay:g}"
        start = f" from epoch {self.start:g} on" if self.start else ""
        return f"weights averaged {how} after every {self.every}{start}"


# When to stop: what a held-out part of the data says about going on.


@dataclass(frozen=True)
class EarlyStopping:
    """Stop once so many epochs in a row were no better than the best before them.

    Attributes:
        patience: How many.
        min_gain: By how much an epoch must be above the best before it to count as better, in the measure's unit.

    Example:
        >>> rule = EarlyStopping(patience=2)
        >>> rule.stop([0.50, 0.60, 0.59]), rule.stop([0.50, 0.60, 0.59, 0.60]), rule.best([0.50, 0.60, 0.59, 0.60])
        (False, True, 1)

    References:
        Prechelt, "Early Stopping - But When?", 1998.
    """

    patience: int = 3
    min_gain: float = 0.0

    def __post_init__(self) -> None:
        require(self.patience >= 1, "patience", "at least 1", self.patience)
        require(self.min_gain >= 0, "min_gain", "zero or positive", self.min_gain)

    def best(self, measures: Sequence[float]) -> int:
        """Return the 0-based epoch to take: the last that was better than all before it by more than ``min_gain``.

        Args:
            measures: One per epoch on the held-out part, larger is better. NaN is never better.

        Raises:
            ArgumentError: There is none.
        """
        require(len(measures) > 0, "measures", "one per epoch, at least one", list(measures))
        best = 0
        for epoch, measure in enumerate(measures):
            if measures[best] != measures[best] or measure > measures[best] + self.min_gain:
                best = epoch
        return best

    def stop(self, measures: Sequence[float]) -> bool:
        """Tell whether to stop after the epochs measured so far."""
        return bool(measures) and len(measures) - 1 - self.best(measures) >= self.patience

    def __str__(self) -> str:
        return f"stopped after {self.patience} epochs without gain"


# What a recipe leaves open, to be chosen on a part of the user's own training photos.


@dataclass(frozen=True)
class HeldOutChoice:
    """How the number of epochs and the exponent of the score are chosen.

    Attributes:
        fraction: Of the training photos, held out for it.
        exponents: To choose from.
        stopping: When more epochs are of no use; the best of those before it is chosen. ``None`` leaves the number
            of epochs to the recipe, as one should whose learning rate falls toward the last.

    Example:
        >>> print(HeldOutChoice())
        exponent (1, 2, 3, 5, 8, inf) by mean AP on 20% of the training photos
    """

    fraction: float = 0.2
    exponents: tuple[float, ...] = (1, 2, 3, 5, 8, math.inf)
    stopping: EarlyStopping | None = None

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "fraction", "in (0, 1)", self.fraction)
        positive = len(self.exponents) > 0 and min(self.exponents) > 0
        require(positive, "exponents", "positive numbers, at least one", self.exponents)

    def __str__(self) -> str:
        exponents = ", ".join(f"{exponent:g}" for exponent in self.exponents)
        text = f"exponent ({exponents}) by mean AP on {self.fraction:.0%} of the training photos"
        return f"epochs and {text}, {self.stopping}" if self.stopping else text


# A part of the training photos kept for choosing settings, with every class in both parts.


class HeldOut(NamedTuple):
    """Indices of the photos to train on and of those kept, ascending, int64."""

    train: Tensor
    held: Tensor


def hold_out(presence: Tensor, fraction: float = 0.2, seed: int = 0) -> HeldOut:
    """Split photos so that each class has its share in both parts.

    Photos show several classes, so they cannot be split class by class. The rarest class among those not yet dealt
    out comes first, and each of its photos goes where most of that class is still wanted; a plain random split may
    leave a rare class out of one part altogether.

    Args:
        presence: (N, K) bool or 0/1, which classes each photo shows.
        fraction: Of the photos, for the held-out part, in (0, 1).
        seed: Of the order in which photos of a class are dealt out.

    Returns:
        The two parts, about ``N * fraction`` photos and about that share of every class in the held-out one; a class
        with less than ``1 / fraction`` photos may be wholly in the other.

    Raises:
        ArgumentError: A wrong shape or fraction, or fewer than two photos.

    Example:
        >>> presence = torch.eye(2, dtype=torch.bool).repeat_interleave(torch.tensor([10, 90]), dim=0)
        >>> train, held = hold_out(presence, fraction=0.2)
        >>> presence[train].sum(dim=0), presence[held].sum(dim=0)
        (tensor([ 8, 72]), tensor([ 2, 18]))

    References:
        Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1.
    """
    require(presence.ndim == 2, "presence", "(N, K)", tuple(presence.shape))
    require(len(presence) >= 2, "presence", "of two photos at least", tuple(presence.shape))
    require(0 < fraction < 1, "fraction", "in (0, 1)", fraction)
    shows = presence.cpu().bool()
    order = torch.randperm(len(shows), generator=torch.Generator().manual_seed(seed))
    shares = torch.tensor([1 - fraction, fraction], dtype=torch.float64)
    part = _deal(shows[order], shares)
    return HeldOut(order[part == 0].sort().values, order[part == 1].sort().values)


def _deal(shows: Tensor, shares: Tensor) -> Tensor:
    """Return the part of each photo, (N,) int64: the part that wants most of the photo's rarest class."""
    wanted = shares[:, None] * shows.sum(dim=0)  # (2, K), of each class
    room = shares * len(shows)  # (2,), of photos
    part = torch.full((len(shows),), -1)
    while (part < 0).any():
        left = (shows & (part < 0)[:, None]).sum(dim=0)  # (K,)
        if left.sum() == 0:
            photos, wish = part < 0, room
            chosen = int(photos.nonzero()[0])
        else:
            rarest = int(left.where(left > 0, len(shows) + 1).argmin())
            chosen, wish = int((shows[:, rarest] & (part < 0)).nonzero()[0]), wanted[:, rarest]
        best = wish == wish.max()
        goes = int(room.where(best, -torch.inf).argmax())
        part[chosen] = goes
        wanted[goes] -= shows[chosen].double()
        room[goes] -= 1
    return part
