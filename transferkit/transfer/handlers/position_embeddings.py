"""Learned position embeddings for another number of positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.errors import HandlerError, require
from transferkit.layers import Layer
from transferkit.transfer.handlers.plain import own_rows
from transferkit.transfer.handlers.registry import register_handler

Grid = tuple[int, int]

_MOST_TOKENS = 2  # before a grid: a class token and a distillation token

# GPT's "word position embeddings" are positions in a text. No other name says what it counts.
_TEXT = re.compile(r"(^|\.)wpe(\.|$)")


class _Reading(NamedTuple):
    """What the positions of one side are: so many tokens, then a grid, or a line where there is none."""

    prefix: int
    grid: Grid | None


@register_handler("position_embeddings")
@dataclass(frozen=True)
class PositionEmbeddings:
    """Gives position embeddings another number of positions: a grid is resized as an image, a line linearly.

    Applies to tensors (1, N, D) or (N, D) whose state-dict key matches ``names``. A grid is resized bicubically,
    antialiased on the way down. Of the tokens before it (class and distillation tokens) those of both sides are
    copied, those that only the source has are dropped, and those that only the target has keep the target's values.

    What is not told must follow from the numbers. They are a grid where both sides are a square after at most two
    tokens, and either the grid or the number of tokens stays the same (197 to 577, 197 to 196). Where they may as
    well be a line (squares without a token before them, or whose sides are powers of two, as lengths of texts are),
    a target with two-dimensional convolutions beside them decides, and without one it is refused. ``wpe``, as GPT
    calls positions in a text, are a line.

    Args:
        names: Regular expression found in the keys of position embeddings.
        source_grid: Rows and columns of the source's grid, where it is not square.
        target_grid: Rows and columns of the target's grid, where it is not square.
        prefix: Number of tokens before the grid or line; a pair where the source's and the target's differ.
        kind: ``"grid"`` or ``"sequence"``, where it does not follow from the numbers.

    Example:
        >>> from transferkit.layers import layers_of
        >>> (short,), (long,) = layers_of(nn.Embedding(4, 1)), layers_of(nn.Embedding(8, 1))
        >>> handler = PositionEmbeddings(names="weight", kind="sequence")
        >>> handler(short, long)["weight"].shape
        torch.Size([8, 1])

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.2.
    """

    names: str = r"pos(ition(al)?)?_?(embed|emb|enc|bias)|pos_table|wpe"
    source_grid: Grid | None = None
    target_grid: Grid | None = None
    prefix: int | tuple[int, int] | None = None
    kind: Literal["grid", "sequence"] | None = None

    def __post_init__(self) -> None:
        require(self.kind in (None, "grid", "sequence"), "kind", "'grid' or 'sequence'", self.kind)
        grid = self.source_grid or self.target_grid
        require(self.kind != "sequence" or grid is None, "kind", "'grid' where a grid is given", self.kind)

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the layer with its position embeddings resized; ``None`` where it has none to resize.

        Raises:
            HandlerError: What the positions are does not follow from their numbers, or these contradict what is told.
        """
        tensors = dict(source.tensors)
        for short, own in target.tensors.items():
            value = source.tensors.get(short)
            if (
                value is None
                or value.shape == own.shape
                or not self._are_positions(target.key(short), value, own)
            ):
                continue
            old, new = self._readings(value.shape[-2], own.shape[-2], target, short)
            tensors[short] = _resized(value, own, old, new)
        return None if all(tensors[short] is source.tensors[short] for short in tensors) else tensors

    def _are_positions(self, key: str, value: Tensor, own: Tensor) -> bool:
        named = re.search(self.names, key, re.IGNORECASE) is not None
        same_width = value.shape[-1] == own.shape[-1] and value.shape[:-2] == own.shape[:-2]
        return named and value.ndim == own.ndim and value.ndim in (2, 3) and same_width

    def _readings(self, old: int, new: int, target: Layer, short: str) -> tuple[_Reading, _Reading]:
        """Return what either side's positions are, as it was told or as the numbers allow."""
        told = self.kind == "grid" or self.source_grid or self.target_grid or self.prefix is not None
        if self.kind == "sequence" or (not told and _TEXT.search(target.key(short))):
            first, second = (prefix or 0 for prefix in self._prefixes)
            return _line(old, first), _line(new, second)
        if told:
            return self._grids(old, new)
        return _worked_out(old, new, target.module)

    def _grids(self, old: int, new: int) -> tuple[_Reading, _Reading]:
        first, second = self._prefixes
        if first is None and self.source_grid:
            first = old - _area(self.source_grid)
        if second is None and self.target_grid:
            second = new - _area(self.target_grid)
        return _grid(old, self.source_grid, first, second), _grid(new, self.target_grid, second, first)

    @property
    def _prefixes(self) -> tuple[int | None, int | None]:
        return self.prefix if isinstance(self.prefix, tuple) else (self.prefix, self.prefix)


def _line(count: int, prefix: int) -> _Reading:
    if not 0 <= prefix < count:
        raise HandlerError(f"{count} positions are no {prefix} tokens and a line; give another prefix")
    return _Reading(prefix, None)


def _grid(count: int, grid: Grid | None, prefix: int | None, other: int | None) -> _Reading:
    """Read positions as a grid, with as many tokens before it as was told, or as the other side has."""
    if prefix is None and other is not None and _square(count - other):
        prefix = other
    if prefix is None:
        square = _as_square(count)
        prefix = square.prefix if square else 0
    grid = grid or _square(count - prefix)
    if grid is None or prefix < 0 or _area(grid) != count - prefix:
        shape = f"{grid[0]} x {grid[1]} grid" if grid else "square grid"
        raise HandlerError(
            f"{count - max(prefix, 0)} positions are no {shape}; give PositionEmbeddings its source_grid "
            "and target_grid, (rows, columns), and prefix, or kind='sequence'"
        )
    return _Reading(prefix, grid)


def _worked_out(old: int, new: int, module: nn.Module | None) -> tuple[_Reading, _Reading]:
    """Read positions as two square grids, where the numbers or the module around them leave no other reading.

    Raises:
        HandlerError: They leave one.
    """
    first, second = _as_square(old), _as_square(new)
    if first and second and (_holds_images(module) or _cannot_be_lines(first, second)):
        return first, second
    raise HandlerError(
        f"{old} positions for {new} may be a line, or {_described(first, second)}, and nothing tells which; give "
        f"handlers=[PositionEmbeddings(kind='sequence')] or {_for_a_grid(first, second)}"
    )


def _described(first: _Reading | None, second: _Reading | None) -> str:
    grids = [
        f"{reading.grid[0]} x {reading.grid[1]}" + f" after {reading.prefix}" * bool(reading.prefix)
        for reading in (first, second)
        if reading and reading.grid
    ]
    return f"grids of {' and '.join(grids)}" if len(grids) == 2 else "grids that are not square"


def _for_a_grid(first: _Reading | None, second: _Reading | None) -> str:
    if first and second:
        return "handlers=[PositionEmbeddings(kind='grid')]"
    return "PositionEmbeddings with source_grid and target_grid, (rows, columns)"


def _cannot_be_lines(first: _Reading, second: _Reading) -> bool:
    """Tell whether two numbers are those of grids: a token stands before one, and only grid or tokens changed.

    Texts have powers of two, with a few more where special ones are counted, and some of these are squares.
    """
    one_changed = first.prefix == second.prefix or first.grid == second.grid
    tokens = first.prefix or second.prefix
    lengths = all(reading.grid and reading.grid[0].bit_count() == 1 for reading in (first, second))
    return bool(tokens) and one_changed and not lengths


def _holds_images(module: nn.Module | None) -> bool:
    """Tell whether a module looks at images alone: it has 2-D convolutions, and none of another kind or table."""
    modules = [] if module is None else list(module.modules())
    others = (nn.Conv1d, nn.Conv3d, nn.Embedding, nn.EmbeddingBag)
    return any(isinstance(one, nn.Conv2d) for one in modules) and not any(
        isinstance(one, others) for one in modules
    )


def _as_square(count: int) -> _Reading | None:
    """Return the only way to read a number as a few tokens and a square, if there is one."""
    ways = [_Reading(prefix, grid) for prefix in range(_MOST_TOKENS + 1) if (grid := _square(count - prefix))]
    return ways[0] if len(ways) == 1 else None


def _square(count: int) -> Grid | None:
    side = isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


def _area(grid: Grid) -> int:
    return grid[0] * grid[1]


def _resized(value: Tensor, own: Tensor, old: _Reading, new: _Reading) -> Tensor:
    """Return (..., N, D) embeddings of the target's number, where the source's and the target's are read so."""
    width = value.shape[-1]
    source, target = value.reshape(-1, value.shape[-2], width), own.reshape(-1, own.shape[-2], width)
    shared = min(old.prefix, new.prefix)
    tokens = [source[:, :shared]]
    if new.prefix > shared:
        tokens.append(own_rows(target[:, shared : new.prefix], source))
    count = target.shape[1] - new.prefix
    rest = _interpolated(source[:, old.prefix :], old.grid, new.grid, count)
    return torch.cat([*tokens, rest], dim=1).reshape(own.shape)


def _interpolated(tokens: Tensor, old: Grid | None, new: Grid | None, count: int) -> Tensor:
    """Return (1, count, D) embeddings for the (1, N, D) of a grid, or of a line."""
    if tokens.shape[1] == count and old == new:
        return tokens
    lines = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).mT  # (1, D, N)
    if old is None:
        resized = functional.interpolate(lines, size=count, mode="linear", align_corners=False)
    else:
        image = lines.reshape(*lines.shape[:2], *old)  # (1, D, rows, columns)
        resized = functional.interpolate(image, size=new, mode="bicubic", antialias=True, align_corners=False)
    return resized.flatten(2).mT.to(tokens.dtype)
