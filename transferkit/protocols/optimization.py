"""How an optimizer is set up, as a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from transferkit.errors import require
from transferkit.optimization import WarmupCosine


@dataclass(frozen=True)
class Optimization:
    """How the optimizer is set up.

    Attributes:
        learning_rate: At the start.
        momentum: Of the gradient; Adam's first beta.
        weight_decay: L2 penalty on every trained parameter; decoupled from the gradient in AdamW.
        steps: Epochs (0-based) at which the learning rate changes.
        factors: What the learning rate is from each of ``steps`` on, as a multiple of the first.
        schedule: A rate that never rests, instead of ``steps``; ``learning_rate`` is its highest.
        method: ``"sgd"``, stochastic gradient descent, or ``"adamw"``.
        transferred: Learning rate of the transferred layers, as a multiple of that of the new ones.

    Example:
        >>> settings = Optimization(1e-4, 0.9, 5e-4, steps=(15, 20), factors=(0.5, 0.1))
        >>> [settings.factor(epoch) for epoch in (0, 14, 15, 19, 20)]
        [1.0, 1.0, 0.5, 0.5, 0.1]
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    steps: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()
    schedule: WarmupCosine | None = None
    method: Literal["sgd", "adamw"] = "sgd"
    transferred: float = 1.0

    def __post_init__(self) -> None:
        require(self.method in ("sgd", "adamw"), "method", "'sgd' or 'adamw'", self.method)
        require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        require(self.transferred > 0, "transferred", "positive", self.transferred)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "zero or positive", self.weight_decay)
        require(list(self.steps) == sorted(self.steps), "steps", "in ascending order", self.steps)
        require(
            len(self.steps) == len(self.factors), "factors", f"one for each of steps {self.steps}", self.factors
        )
        require(not (self.steps and self.schedule), "steps", f"empty beside {self.schedule}", self.steps)

    def factor(self, epoch: float) -> float:
        """Return the learning rate, as a multiple of ``learning_rate``, after so many epochs and their fraction."""
        if self.schedule is not None:
            return self.schedule.factor(epoch)
        reached = [factor for step, factor in zip(self.steps, self.factors, strict=True) if step <= epoch]
        return reached[-1] if reached else 1.0

    def adjusted(self, learning_rate: float | None = None, epochs: int | None = None) -> Optimization:
        """Return the same with another learning rate, or a schedule that ends after other many epochs."""
        changes: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
        if epochs and self.schedule is not None:
            changes["schedule"] = self.schedule.over(epochs)
        return replace(self, **changes)

    def __str__(self) -> str:
        changes = ", ".join(
            f"x{factor:g} after {step} epochs" for step, factor in zip(self.steps, self.factors, strict=True)
        ) or str(self.schedule or "")
        method = {"sgd": "SGD", "adamw": "AdamW"}[self.method]
        slower = f", of transferred layers {self.transferred:g} of it" if self.transferred != 1 else ""
        return (
            f"{method}, learning rate {self.learning_rate:g}{f' ({changes})' if changes else ''}{slower}, "
            f"momentum {self.momentum:g}, weight decay {self.weight_decay:g}"
        )
