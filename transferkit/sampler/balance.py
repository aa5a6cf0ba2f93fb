"""Balance: which patches of an image to use. Most show background, and a network fed all of them learns only that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.labeling import BACKGROUND


class Balance(Protocol):
    """Chooses patches by their labels; any function of this form will do.

    One that also has ``size(available, count)``, the number of patches it will choose whatever the labels, spares its
    sampler to label every image beforehand to know how many minibatches there will be.
    """

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return the chosen rows.

        Args:
            labels: (P,) int64: classes, 0 for background, ``IGNORE`` for neither.
            count: How many patches are wanted; ``None`` for as many as there are.
            generator: The only source of random choices.

        Returns:
            (B,) int64 rows, 0..P-1; a row may occur more than once. B must not depend on the generator.
        """
        ...


@dataclass(frozen=True)
class PositivesFirst:
    """All patches with an object (the first ``count`` if there are more), filled up with random background.

    Background is drawn without replacement as far as it goes. An image that is short of background gives it over
    again, and one that has none gives its positives over again, so that every image gives exactly ``count``. Patches
    labeled ``IGNORE`` are never chosen; an image that has no others gives those, for losses to skip.

    Example:
        >>> labels = torch.tensor([0, 0, 7, 0, -100, 0])
        >>> chosen = PositivesFirst()(labels, 3, torch.Generator().manual_seed(0))
        >>> labels[chosen].tolist()
        [7, 0, 0]
    """

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return (count,) rows, positives before background."""
        labels = _classes(labels)
        positive = _rows(labels > BACKGROUND)[:count]
        background = _rows(labels == BACKGROUND)
        if count is None:
            return torch.cat([positive, background])
        fill = _first_with_any(background, positive, torch.arange(len(labels)))
        return torch.cat([positive, draw(fill, count - len(positive), generator)])

    def size(self, available: int, count: int | None) -> int | None:
        """Return ``count``, if that is a number."""
        return count if available else 0


@dataclass(frozen=True)
class ClassBalanced:
    """A part of background, and the rest in equal shares for the classes that the image shows.

    Each share is drawn without replacement as far as it goes and then over again, so that every image gives exactly
    ``count``. An image without background, or with nothing else, gives what it has.

    Attributes:
        background: Part of the patches that show background.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 7, 7, 7, 7, 7, 3])
        >>> chosen = ClassBalanced(0.5)(labels, 4, torch.Generator().manual_seed(0))
        >>> labels[chosen].sort().values.tolist()
        [0, 0, 3, 7]
    """

    background: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.background <= 1, "background", "from 0 to 1", self.background)

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return (count,) rows, background first and then class by class."""
        labels = _classes(labels)
        count = len(labels) if count is None else count
        classes = torch.unique(labels[labels > BACKGROUND])
        classes = classes[torch.randperm(len(classes), generator=generator)]  # the first ones get the remainder
        background = _rows(labels == BACKGROUND)
        if not len(classes):
            fill = _first_with_any(background, torch.arange(len(labels)))
            return draw(fill, count, generator)
        of_background = round(self.background * count) if len(background) else 0
        share, rest = divmod(count - of_background, len(classes))
        shares = [
            draw(_rows(labels == label), share + (place < rest), generator)
            for place, label in enumerate(classes.tolist())
        ]
        return torch.cat([draw(background, of_background, generator), *shares])

    def size(self, available: int, count: int | None) -> int | None:
        """Return ``count``, or ``available`` where that is ``None``."""
        return (available if count is None else count) if available else 0


@dataclass(frozen=True)
class RandomSubset:
    """``count`` patches drawn without replacement whatever their labels, in the grid's order; all if it has fewer."""

    def __call__(self, labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        """Return (min(count, P),) rows, ascending."""
        return torch.randperm(len(labels), generator=generator)[:count].sort().values

    def size(self, available: int, count: int | None) -> int | None:
        """Return how many of ``available`` will be chosen."""
        return available if count is None else min(available, count)


@dataclass(frozen=True)
class AllPatches:
    """All patches, in the grid's order; ``count`` plays no role."""

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
        labels = _classes(labels)
        background = _rows(labels == BACKGROUND)
        chosen = draw(background, round(self.fraction * len(background)), generator)
        return torch.cat([_rows(labels > BACKGROUND), chosen])


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


def _classes(labels: Tensor) -> Tensor:
    """Return labels if they are what a balance of classes can choose by."""
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    what = "one class for each patch, (P,) whole numbers (RandomSubset() and AllPatches() look at none)"
    require(labels.ndim == 1 and whole, "labels", what, (tuple(labels.shape), labels.dtype))
    return labels


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]


def _first_with_any(*rows: Tensor) -> Tensor:
    return next((some for some in rows if len(some)), rows[-1])
