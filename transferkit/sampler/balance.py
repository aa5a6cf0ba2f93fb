"""Balance: which patches of an image to use. Most show background, and a network fed all of them learns only
that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.labeling import BACKGROUND


class Balance(Protocol):
    """Chooses patches by their labels; any function of this form will do.

    A balance that also has ``size(available, count)`` tells how many patches it will choose without seeing the
    labels, or ``None`` where it cannot; a sampler of such a balance knows its length without looking at the
    data.
    """

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return the chosen rows.

        Args:
            labels: (P,) int64: classes, 0 for background, ``IGNORE`` for neither.
            count: How many patches are wanted; ``None`` for as many as there are.
            generator: The only source of random choices.

        Returns:
            (B,) int64 rows, 0..P-1; a row may occur more than once.
        """
        ...


@dataclass(frozen=True)
class PositivesFirst:
    """All patches with an object (the first ``count`` if there are more), filled up with random background.

    Background is drawn without replacement as far as it goes. An image that is short of background gives it
    over again, and one that has none gives its positives over again, so that every image gives exactly
    ``count`` patches. Patches labelled ``IGNORE`` are never chosen; an image that has no other gives those, for
    losses to skip.

    Example:
        >>> labels = torch.tensor([0, 0, 7, 0, -100, 0])
        >>> chosen = PositivesFirst()(labels, 3, torch.Generator().manual_seed(0))
        >>> labels[chosen].tolist()
        [7, 0, 0]
    """

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return (count,) rows, positives before background."""
        positive = (labels > BACKGROUND).nonzero()[:count, 0]
        background = (labels == BACKGROUND).nonzero()[:, 0]
        if count is None:
            return torch.cat([positive, background])
        fill = next((rows for rows in (background, positive) if len(rows)), torch.arange(len(labels)))
        return torch.cat([positive, draw(fill, count - len(positive), generator)])

    def size(self, available: int, count: int | None) -> int | None:
        """Return ``count``."""
        return count if available else 0


@dataclass(frozen=True)
class RandomSubset:
    """``count`` patches drawn without replacement whatever their labels, in the grid's order; all if there are
    fewer.
    """

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return (min(count, P),) rows, ascending."""
        return torch.randperm(len(labels), generator=generator)[:count].sort().values

    def size(self, available: int, count: int | None) -> int | None:
        """Return how many patches will be chosen of ``available``."""
        return available if count is None else min(available, count)


@dataclass(frozen=True)
class AllPatches:
    """All patches, in the grid's order."""

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return (P,) rows."""
        return torch.arange(len(labels))

    def size(self, available: int, count: int | None) -> int | None:
        """Return ``available``."""
        return available


@dataclass(frozen=True)
class BackgroundFraction:
    """All patches with an object, and a random part of the background; ``count`` plays no role.

    Attributes:
        fraction: Part of the background patches, rounded to the nearest whole number of them.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.fraction <= 1, "fraction", "from 0 to 1", self.fraction)

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return the rows of all positives, then those of the background."""
        positive = (labels > BACKGROUND).nonzero()[:, 0]
        background = (labels == BACKGROUND).nonzero()[:, 0]
        return torch.cat([positive, draw(background, round(self.fraction * len(background)), generator)])


def draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw ``count`` of ``rows`` at random, each once before any is drawn again.

    Example:
        >>> draw(torch.tensor([5, 7]), 4, torch.Generator().manual_seed(0)).sort().values.tolist()
        [5, 5, 7, 7]
    """
    if not len(rows) or count <= 0:
        return rows[:0]
    rounds = -(-count // len(rows))
    order = [torch.randperm(len(rows), generator=generator) for _ in range(rounds)]
    return rows[torch.cat(order)[:count]]
