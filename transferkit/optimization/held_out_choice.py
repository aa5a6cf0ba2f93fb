"""What a recipe leaves open, to be chosen on a part of the user's own training photos."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transferkit.errors import require
from transferkit.optimization.early_stopping import EarlyStopping


@dataclass(frozen=True)
class HeldOutChoice:
    """How the number of epochs and the exponent of the score are chosen.

    Attributes:
        fraction: Of the training photos, held out for it.
        exponents: To choose from.
        stopping: When more epochs are of no use; the best of those before it is chosen. ``None`` leaves the number
            of epochs to the recipe, as one should whose learning rate falls towards the last.

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
