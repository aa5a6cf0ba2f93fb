"""The images that say most about a class: best hits, worst misses and false alarms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.errors import require


@dataclass(frozen=True)
class Extremes:
    """Image numbers of one class, the most telling first.

    Attributes:
        hits: Images that show the class, highest score first; where there are few, the better half of them.
        misses: Images that show it, lowest score first; none of ``hits``.
        alarms: Images that do not, highest score first.
    """

    hits: tuple[int, ...]
    misses: tuple[int, ...]
    alarms: tuple[int, ...]


def find_extremes(scores: Tensor, targets: Tensor, ignore: Tensor | None = None, count: int = 5) -> Extremes:
    """Return the images at the ends of one class's ranking.

    Args:
        scores: (N,) of one class.
        targets: (N,) bool: the image shows the class.
        ignore: (N,) bool: images to leave out, such as those with only difficult objects.
        count: How many of each at most.

    Raises:
        ArgumentError: Shapes that do not fit.

    Example:
        >>> find_extremes(torch.tensor([0.9, 0.1, 0.8]), torch.tensor([True, True, False]), count=1)
        Extremes(hits=(0,), misses=(1,), alarms=(2,))
    """
    for name, mask in (("targets", targets), ("ignore", ignore)):
        fits = mask is None or mask.shape == scores.shape
        require(fits and scores.ndim == 1, name, "of the scores' shape (N,)", (scores.shape, mask))
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    considered = [n for n in order if ignore is None or not ignore[n]]
    positives = [n for n in considered if targets[n]]
    hits = positives[: min(count, (len(positives) + 1) // 2)]
    misses = positives[len(hits) :][::-1][:count]
    alarms = [n for n in considered if not targets[n]][:count]
    return Extremes(tuple(hits), tuple(misses), tuple(alarms))
