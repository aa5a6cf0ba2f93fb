"""Frozen settings of training that a recipe holds: learning rate schedule, EMA, early stopping, held-out photos."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from transferkit.annotated import truth
from transferkit.distributed import in_process_group
from transferkit.errors import ArgumentError, listed, require

__all__ = ["EarlyStopping", "HeldOut", "HeldOutChoice", "WarmupCosine", "WeightAverage", "hold_out"]


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up over the first epochs, then cosine decay.

    Attributes:
        epochs: Length of the schedule, warm-up included; afterwards the rate stays constant.
        warmup: Epochs of warm-up, often less than one. The first gradients of a new head are large and random; at the
            full rate they would damage transferred layers and fill the momentum buffers.
        final: The last rate, as a multiple of the highest.

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
            epoch: Epochs done, as a real number: 1.5 is the middle of the second epoch.
        """
        if epoch < self.warmup:
            return epoch / self.warmup
        passed = min(1.0, (epoch - self.warmup) / (self.epochs - self.warmup))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * passed)) / 2

    def over(self, epochs: float) -> WarmupCosine:
        """Return the same schedule over another number of epochs; warm-up keeps its share of them."""
        return WarmupCosine(epochs, self.warmup * epochs / self.epochs, self.final)

    def __str__(self) -> str:
        rise = f"warm-up over {self.warmup:g} epochs, " if self.warmup else ""
        return f"{rise}cosine to x{self.final:g} after {self.epochs:g} epochs"


@dataclass(frozen=True)
class WeightAverage:
    """Exponential moving average (EMA) of a model's weights, or their plain average (SWA).

    Attributes:
        decay: Decay of the EMA, in (0, 1): each update keeps this share of the average, which spans about
            ``1 / (1 - decay)`` updates. Update n uses at most ``(1 + n) / (10 + n)``, so that the initial weights do
            not dominate a short run. ``None``: all weights count equally (stochastic weight averaging, SWA).
        start: Epochs before the first update, as a real number.
        every: Update after each ``"step"`` of the optimizer, or after each ``"epoch"``.

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
        """Tell whether to update the average after ``steps`` steps of the optimizer."""
        started = steps > self.start * steps_per_epoch
        return started and (self.every == "step" or steps % steps_per_epoch == 0)

    def keep(self, count: int) -> float:
        """Return the share that an average of ``count`` updates keeps at the next one."""
        return count / (count + 1) if self.decay is None else min(self.decay, (1 + count) / (10 + count))

    def of(self, model: nn.Module) -> AveragedModel:
        """Return torch's averaged model: a copy of ``model`` that ``update_parameters(model)`` updates.

        Buffers are copied from ``model`` as it is. After SWA the running statistics of trained batch norms therefore
        belong to the last weights: refresh them with :func:`torch.optim.swa_utils.update_bn`.
        """
        averaged = AveragedModel(model, multi_avg_fn=self._mix)
        averaged.requires_grad_(False)
        return averaged

    @torch.no_grad()
    def _mix(self, averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(weights), 1 - self.keep(int(count)))

    def __str__(self) -> str:
        kind = "plain average (SWA)" if self.decay is None else f"EMA with decay {self.decay:g}"
        start = f" from epoch {self.start:g} on" if self.start else ""
        return f"{kind} of the weights, updated after every {self.every}{start}"


@dataclass(frozen=True)
class EarlyStopping:
    """Stop training after ``patience`` epochs in a row without a new best.

    Attributes:
        patience: Number of epochs.
        min_gain: How far an epoch must exceed the best before it to count as better, in the measure's unit.

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
        """Return the best epoch, 0-based: the last that beat the best before it by more than ``min_gain``.

        Args:
            measures: One per epoch, on held-out data; larger is better. NaN is never better.

        Raises:
            ArgumentError: ``measures`` is empty.
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


@dataclass(frozen=True)
class HeldOutChoice:
    """How held-out photos choose the exponent of the score and the number of epochs.

    Attributes:
        fraction: Fraction of the training photos that is held out.
        exponents: Candidates for the exponent.
        stopping: Rule that ends the trial training; its best epoch gives the number of epochs. ``None`` leaves that
            number to the recipe, which suits a learning rate that decays until the last epoch.

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


class HeldOut(NamedTuple):
    """Two parts of a data set.

    Attributes:
        train: Indices of the photos to train on, ascending, int64.
        held: Indices of the held-out photos, ascending, int64.
    """

    train: Tensor
    held: Tensor


def hold_out(presence: Tensor, fraction: float = 0.2, seed: int = 0) -> HeldOut:
    """Split photos so that both parts have their share of every class.

    A photo shows several classes, so the split cannot be made class by class, and a random split may leave a rare
    class out of one part. Here the rarest class is assigned first, and each of its photos goes to the part that lacks
    most photos of that class.

    Args:
        presence: (N, K) bool or 0/1, which classes each photo shows.
        fraction: Fraction of the photos that is held out, in (0, 1).
        seed: Seed of the order in which the photos of a class are assigned.

    Returns:
        The two parts. The held-out one has about ``N * fraction`` photos and about that share of every class; a class
        with fewer than ``1 / fraction`` photos may have none there.

    Raises:
        ArgumentError: The shape or the fraction is wrong, there are values other than 0 and 1, or fewer than two
            photos.

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
    shows = truth("presence", presence).cpu()
    order = torch.randperm(len(shows), generator=torch.Generator().manual_seed(seed))
    shares = torch.tensor([1 - fraction, fraction], dtype=torch.float64)
    part = _deal(shows[order], shares)
    return HeldOut(order[part == 0].sort().values, order[part == 1].sort().values)


def _deal(shows: Tensor, shares: Tensor) -> Tensor:
    """Return the part of each photo, (N,) int64: the one that lacks most photos of the rarest class left."""
    wanted = shares[:, None] * shows.sum(dim=0)  # (2, K), photos of each class that a part still lacks
    room = shares * len(shows)  # (2,), photos that a part still lacks
    part = torch.full((len(shows),), -1)
    while (part < 0).any():
        left = (shows & (part < 0)[:, None]).sum(dim=0)  # (K,), unassigned photos of each class
        if left.sum() == 0:  # only photos without a class are left: fill the parts
            chosen, wish = int((part < 0).nonzero()[0]), room
        else:
            rarest = int(left.where(left > 0, len(shows) + 1).argmin())
            chosen, wish = int((shows[:, rarest] & (part < 0)).nonzero()[0]), wanted[:, rarest]
        best = wish == wish.max()  # of equally good parts, the one with more room
        goes = int(room.where(best, -torch.inf).argmax())
        part[chosen] = goes
        wanted[goes] -= shows[chosen].double()
        room[goes] -= 1
    return part


# A minibatch of one row, which an epoch may end on.


@contextmanager
def lone_row(network: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Let a network in training mode take a minibatch of one row; others pass unchanged.

    Batch norm cannot normalize a channel by the variance of a single value, and torch raises. Exactly the layers that
    would see one take their running statistics for this minibatch, and leave them as they are.

    Raises:
        ArgumentError: Such a layer keeps no running statistics.
    """
    starved = _starved(network, inputs) if len(inputs) == 1 else {}
    if starved:
        names = listed(list(starved))
        warnings.warn(
            f"a minibatch holds one row only: {names} took their running statistics for it", stacklevel=4
        )
    for norm in starved.values():
        norm.eval()
    yield
    for norm in starved.values():
        norm.train()


@torch.no_grad()
def _starved(network: nn.Module, inputs: Tensor) -> dict[str, nn.Module]:
    """Return the batch norms in training mode that would see one value per channel, by name."""
    modes = [(module, module.training) for module in network.modules()]
    starved: dict[str, nn.Module] = {}

    def look(name: str, norm: _BatchNorm, seen: tuple[Tensor, ...]) -> None:
        if seen[0].numel() != seen[0].shape[1]:
            return
        if norm.running_mean is None:
            raise ArgumentError(
                f"a minibatch of one row cannot be normalized by {name}, which keeps no running statistics; choose a "
                "batch_size that leaves no row over, or leave out minibatches that are not full (drop_last=True)"
            )
        starved[name] = norm

    hooks = [
        norm.register_forward_pre_hook(partial(look, name))
        for name, norm in network.named_modules()
        if isinstance(norm, _BatchNorm) and norm.training and not _synchronized(norm)
    ]
    network.eval()
    try:
        if hooks:
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return starved


def _synchronized(norm: nn.Module) -> bool:
    """Tell whether a norm sees the other ranks' rows too, and must be run alike by all ranks."""
    return isinstance(norm, nn.SyncBatchNorm) and in_process_group()
