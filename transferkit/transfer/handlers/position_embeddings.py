"""Learned position embeddings for another number of positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.errors import HandlerError
from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler

Grid = tuple[int, int]


@register_handler("position_embeddings")
@dataclass(frozen=True)
class PositionEmbeddings:
    """Resizes position embeddings as an image is resized: bicubic over their grid, antialiased on the way down.

    Applies to tensors (1, N, D) or (N, D) whose state-dict key matches ``names``. Tokens before the grid (class and
    distillation tokens) are copied. Unless told, their number is the smallest that leaves a square grid on both
    sides; positions without a square grid on either side are a sequence, interpolated linearly.

    Args:
        names: Regular expression found in the keys of position embeddings.
        source_grid: Rows and columns of the source's grid, where it is not square.
        target_grid: Rows and columns of the target's grid, where it is not square.
        prefix: Number of tokens before the grid, where it is not to be told from the numbers.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.2.
    """

    names: str = r"pos(ition(al)?)?_?(embed|emb|enc|bias)|pos_table|wpe"
    source_grid: Grid | None = None
    target_grid: Grid | None = None
    prefix: int | None = None

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the layer with its position embeddings resized; ``None`` where it has none to resize."""
        tensors = dict(source.tensors)
        for short, own in target.tensors.items():
            value = source.tensors.get(short)
            if (
                value is not None
                and value.shape != own.shape
                and self._is_position(target.key(short), value, own)
            ):
                tensors[short] = self._resized(value, own)
        return None if all(tensors[short] is source.tensors[short] for short in tensors) else tensors

    def _is_position(self, key: str, value: Tensor, own: Tensor) -> bool:
        named = re.search(self.names, key, re.IGNORECASE) is not None
        same_width = value.shape[-1] == own.shape[-1] and value.shape[:-2] == own.shape[:-2]
        return named and value.ndim == own.ndim and value.ndim in (2, 3) and same_width

    def _resized(self, value: Tensor, own: Tensor) -> Tensor:
        old, new = value.shape[-2], own.shape[-2]
        flat = value.reshape(-1, old, value.shape[-1])
        prefix = self._prefix(old, new)
        if prefix is None:
            resized = functional.interpolate(flat.float().mT, size=new, mode="linear", align_corners=False).mT
            return resized.to(value.dtype).reshape(own.shape)
        source_grid = _grid(self.source_grid, old - prefix)
        target_grid = _grid(self.target_grid, new - prefix)
        image = flat[:, prefix:].float().mT.reshape(1, -1, *source_grid)  # (1, D, rows, columns)
        resized = functional.interpolate(
            image, size=target_grid, mode="bicubic", antialias=True, align_corners=False
        )
        grid_tokens = resized.flatten(2).mT.to(value.dtype)
        return torch.cat([flat[:, :prefix], grid_tokens], dim=1).reshape(own.shape)

    def _prefix(self, old: int, new: int) -> int | None:
        """Return the number of tokens before the grid, or ``None`` for a sequence."""
        if self.prefix is not None:
            return self.prefix
        if self.source_grid or self.target_grid:
            grid, tokens = (self.source_grid, old) if self.source_grid else (self.target_grid, new)
            return tokens - grid[0] * grid[1] if grid else None
        return next((count for count in range(3) if _square(old - count) and _square(new - count)), None)


def _square(tokens: int) -> Grid | None:
    side = isqrt(max(tokens, 0))
    return (side, side) if side and side * side == tokens else None


def _grid(given: Grid | None, tokens: int) -> Grid:
    grid = given or _square(tokens)
    if grid is None or grid[0] * grid[1] != tokens:
        shape = f"{grid[0]} x {grid[1]} grid" if grid else "square grid"
        raise HandlerError(f"{tokens} positions are no {shape}; give source_grid, target_grid and prefix")
    return grid
