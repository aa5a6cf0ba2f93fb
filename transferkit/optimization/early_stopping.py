"""When to stop: what a held-out part of the data says about going on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.errors import require


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
