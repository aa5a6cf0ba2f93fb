"""Decide at which sizes an image is shown to the trunk, and which of them serves which patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.errors import ArgumentError, require

MOST_LEVELS = 32
"""How many levels there are at most where each patch size could have its own."""

Levels = int | Sequence[float] | None
"""How many levels, or which, or ``None`` for one for each size of patch."""


class LevelPlan(NamedTuple):
    """By how much an image is resized for each level, and who is read from which.

    Attributes:
        scales: (L,) float64: f, ascending.
        level_of: (P,) int64, each patch's level.
    """

    scales: Tensor
    level_of: Tensor


def check_levels(levels: Levels) -> None:
    """Raise unless ``levels`` is a number of levels, positive scales, or ``None``."""
    if levels is None:
        return
    if isinstance(levels, int):
        require(levels >= 1, "levels", "1 or more, a sequence of scales, or None", levels)
    elif not len(levels) or min(levels) <= 0:
        raise ArgumentError(f"levels must be positive scales, at least one, got {levels!r}")


def plan_levels(boxes: Tensor, image_size: tuple[int, int], patch_size: int, levels: Levels) -> LevelPlan:
    """Return the levels that an image's patches need.

    A patch of area w h is as large as S x S in the image resized by ``f = S / sqrt(w h)``. Each patch takes the
    level that is nearest to that in proportion.

    Args:
        boxes: (P, 4) xyxy, pixels, of positive area.
        image_size: ``(height, width)``, pixels.
        patch_size: S.
        levels: ``None`` for one for each size of patch (if there are more than ``MOST_LEVELS`` sizes, that many
            spread as below); a number of them, spread geometrically from the smallest f to the largest; or
            scales as a :class:`PatchGrid` has them: at scale c a patch of S pixels is the image's shorter side
            over c.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 50, 50], [10, 0, 60, 50]])
        >>> plan_levels(boxes, (100, 200), 224, None)
        LevelPlan(scales=tensor([2.2400, 4.4800], dtype=torch.float64), level_of=tensor([0, 1, 1]))
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).double()
    if not (sides > 0).all():
        row = int((sides <= 0).any(dim=1).nonzero()[0])
        raise ArgumentError(f"boxes must have an area, got {boxes[row].tolist()} at row {row}")
    wanted = patch_size / sides.prod(dim=1).sqrt()  # (P,)
    scales = _scales(wanted, image_size, patch_size, levels)
    if len(scales) == 1:
        return LevelPlan(scales, torch.zeros(len(boxes), dtype=torch.int64))
    between = (scales[1:] * scales[:-1]).sqrt()
    level_of = torch.bucketize(wanted, between)
    used, level_of = torch.unique(level_of, return_inverse=True)
    return LevelPlan(scales[used], level_of)


def _scales(wanted: Tensor, image_size: tuple[int, int], patch_size: int, levels: Levels) -> Tensor:
    if levels is not None and not isinstance(levels, int):
        scales = torch.tensor(sorted(levels), dtype=torch.float64)
        return scales * patch_size / min(image_size)
    if levels is None:
        distinct = _distinct(wanted)
        if len(distinct) <= MOST_LEVELS:
            return distinct
        levels = MOST_LEVELS
    low, high = wanted.min().log(), wanted.max().log()
    if levels == 1:
        return ((low + high) / 2).exp()[None]
    return torch.linspace(float(low), float(high), levels, dtype=torch.float64).exp()


def _distinct(wanted: Tensor) -> Tensor:
    """Return the different values, ascending; those that only rounding tells apart are one."""
    ordered = wanted.sort().values
    new = torch.ones(len(ordered), dtype=torch.bool)
    new[1:] = ordered[1:] > ordered[:-1] * (1 + 1e-6)
    return ordered[new]
