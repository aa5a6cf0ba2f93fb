"""A learning rate that rises from zero and falls back to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.errors import require


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
