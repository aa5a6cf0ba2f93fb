"""Where patches lie: evenly over an image at several scales, or as tiles of fixed pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from transferkit.boxes import as_size
from transferkit.errors import ArgumentError, require

NEON_SCALES = (1, 1.3, 1.6, 2, 2.3, 2.6, 3, 3.3, 3.6, 4, 4.3, 4.6, 5)
"""The recipe's scales: a patch's side is the image's shorter side divided by one of these."""


class Grid(Protocol):
    """Lays patches over an image by its size; any function of this form will do.

    One that also has ``count(image_size)``, how many patches it would lay, spares building them to know. An image on
    which it lays none is passed over.
    """

    def __call__(self, image_size: tuple[int, int]) -> Tensor:
        """Return (P, 4) patches, xyxy, pixels, of an image of ``(height, width)`` pixels."""
        ...


class Proposals(Protocol):
    """Proposes patches of an image by what it shows or at random; any function of this form will do.

    One that needs no random numbers may leave out the generator.
    """

    def __call__(self, item: Any, generator: torch.Generator) -> Tensor:
        """Return (P, 4) patches, xyxy, pixels; P must be the same in every epoch.

        Args:
            item: What the data set has of the image.
            generator: Of (seed, epoch, image): what is drawn from it is the same for any workers and ranks.
        """
        ...


def exact(number: float | Fraction) -> Fraction:
    """Return the number as it is written: 1.3 is 13/10, not the nearest binary fraction."""
    return number if isinstance(number, Fraction) else Fraction(str(number))


def intervals(extent: Fraction, side: Fraction, count: int) -> list[tuple[float, float]]:
    """Return starts and ends of ``count`` intervals of length ``side`` that are spread evenly over ``[0, extent]``.

    ``start[i] = i * (extent - side) / (count - 1)``: the first begins at 0 and the last ends at ``extent``. A
    single one is centered. The result is the nearest float of each: whole numbers over one denominator, divided once.
    """
    room = extent - side
    places, steps = (range(count), count - 1) if count > 1 else (range(1, 2), 2)
    step, length = room.numerator * side.denominator, side.numerator * room.denominator * steps
    whole = room.denominator * side.denominator * steps
    return [(i * step / whole, (i * step + length) / whole) for i in places]


@dataclass(frozen=True)
class PatchGrid:
    """Square patches of an image at several scales, as a pure function of its size.

    At scale s the side is ``extent(shorter) / s``. Along each axis the fewest patches that cover it are laid
    evenly from edge to edge, ``n = ceil(extent / side)``, and ``density`` times as many where that is more than
    one; or, with ``min_overlap``, as few as overlap their neighbors by that much. All of it is rational
    arithmetic: a float would tip ``ceil`` for some sizes and add a row of patches.

    Attributes:
        scales: Larger is finer; used in this order. 1.3 means 13/10.
        density: Multiplies the number of patches along an axis, where one is not enough.
        target: After the first ``min_scales`` scales, stop once there are so many patches; ``None`` for all scales.
        min_scales: How many scales are used in any case.
        min_overlap: Least part of its side by which a patch overlaps the next, 0 to below 1; replaces ``density``.
        reach: Whether patches reach to the ``"last_pixel"``'s index (extent ``dim - 1``, as neon had it: its last
            row and column are reached, not covered) or to the ``"edge"`` of the image (extent ``dim``).

    References:
        The defaults are the recipe's of 2016. ``PatchGrid(min_overlap=0.5, target=500)`` is the paper's: Oquab,
        Bottou, Laptev, Sivic: Learning and transferring mid-level image representations using convolutional neural
        networks, CVPR 2014, section 3.2, about 500 patches that overlap their neighbors by half or more.

    Example:
        >>> grid = PatchGrid()
        >>> grid.counts((375, 500))
        (4, 16, 24, 24, 48, 48, 60, 80, 80, 96, 120)
        >>> grid((375, 500)).shape
        torch.Size([600, 4])
    """

    scales: tuple[float | Fraction, ...] = NEON_SCALES
    density: int = 2
    target: int | None = 448
    min_scales: int = 11
    min_overlap: float | Fraction | None = None
    reach: Literal["last_pixel", "edge"] = "last_pixel"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        require(bool(self.scales), "scales", "at least one number", self.scales)
        require(all(1 <= scale < math.inf for scale in self.scales), "scales", "1 or more", self.scales)
        require(_whole(self.density), "density", "a whole number, 1 or more", self.density)
        require(self.target is None or self.target >= 1, "target", "1 or more, or None", self.target)
        require(_whole(self.min_scales), "min_scales", "a whole number, 1 or more", self.min_scales)
        overlap = self.min_overlap
        require(overlap is None or 0 <= overlap < 1, "min_overlap", "from 0 to below 1, or None", overlap)
        require(self.reach in ("last_pixel", "edge"), "reach", "'last_pixel' or 'edge'", self.reach)

    def __call__(self, image_size: tuple[int, int]) -> Tensor:
        """Return the patches of an image.

        Args:
            image_size: ``(height, width)``, pixels, each 1 or more.

        Returns:
            (P, 4) float64, xyxy, pixels, inside the image; scale by scale, and within a scale column by column
            (x is the outer loop).
        """
        height, width = self._extents(image_size)
        rows: list[Tensor] = []
        for side, across, down in self._layout(image_size):
            x = torch.tensor(intervals(width, side, across), dtype=torch.float64)  # (across, 2)
            y = torch.tensor(intervals(height, side, down), dtype=torch.float64)  # (down, 2)
            pairs = torch.stack([x.repeat_interleave(down, dim=0), y.repeat(across, 1)], dim=2)
            rows.append(pairs.flatten(1))  # (across * down, 4), xyxy
        return torch.cat(rows)

    def counts(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Return the number of patches at each scale that is used, without building them."""
        return tuple(across * down for _, across, down in self._layout(image_size))

    def count(self, image_size: tuple[int, int]) -> int:
        """Return P, the number of patches of an image, without building them."""
        return sum(self.counts(image_size))

    def _extents(self, image_size: tuple[int, int]) -> tuple[Fraction, Fraction]:
        height, width = image_size
        require(height >= 1 and width >= 1, "image_size", "(height, width), each 1 or more", image_size)
        beyond = 1 if self.reach == "last_pixel" else 0
        # One pixel has no distance between its first and its last: there the patch is the pixel.
        return Fraction(max(height - beyond, 1)), Fraction(max(width - beyond, 1))

    def _layout(self, image_size: tuple[int, int]) -> list[tuple[Fraction, int, int]]:
        """Return ``(side, patches across, patches down)`` for each scale that is used."""
        height, width = self._extents(image_size)
        layout: list[tuple[Fraction, int, int]] = []
        total = 0
        for index, scale in enumerate(self.scales):
            if self.target is not None and index >= self.min_scales and total >= self.target:
                break
            side = min(height, width) / exact(scale)
            across, down = self._along(width, side), self._along(height, side)
            layout.append((side, across, down))
            total += across * down
        return layout

    def _along(self, extent: Fraction, side: Fraction) -> int:
        """Return the number of patches along one axis."""
        if self.min_overlap is not None:
            return 1 + math.ceil((extent - side) / (side * (1 - exact(self.min_overlap))))
        fewest = math.ceil(extent / side)
        return fewest * self.density if fewest > 1 else 1


def _whole(number: object) -> bool:
    return isinstance(number, int) and number >= 1


# Tiles: one size, in pixels.

Edge = Literal["inside", "drop", "over"]


@dataclass(frozen=True)
class Tiles:
    """Tiles of a fixed size at a fixed distance, as a pure function of the image's size.

    Attributes:
        size: Of a tile, pixels, or its ``(height, width)``.
        stride: From one tile's start to the next one's, pixels, or ``(down, across)``; that or ``overlap``.
        overlap: Of a tile with the next, pixels, or ``(down, across)``; by default there is none.
        edge: What becomes of the last tile along an axis, where it does not fit: it is moved back ``"inside"`` the
            image, left out (``"drop"``), or reaches ``"over"`` the edge, to be cut with a ``fill``.

    Example:
        >>> Tiles(256, overlap=64)((256, 600))[:, 0].tolist()
        [0.0, 192.0, 344.0]
        >>> [Tiles(256, stride=192, edge=edge).count((256, 600)) for edge in ("inside", "drop", "over")]
        [3, 2, 3]
    """

    size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    overlap: int | tuple[int, int] | None = None
    edge: Edge = "inside"

    def __post_init__(self) -> None:
        require(self.edge in get_args(Edge), "edge", f"one of {get_args(Edge)}", self.edge)
        one = self.stride is None or self.overlap is None
        require(one, "stride", "given, or overlap, not both", (self.stride, self.overlap))
        require(min(self._size_and_stride()[1]) >= 1, "overlap", f"below the size {self.size}", self.overlap)

    def __call__(self, image_size: tuple[int, int]) -> Tensor:
        """Return the tiles of an image.

        Args:
            image_size: ``(height, width)``, pixels.

        Returns:
            (P, 4) float64, xyxy, whole pixels; column by column (x is the outer loop).

        Raises:
            ArgumentError: An image smaller than a tile that must lie inside it.
        """
        height, width = self._size_and_stride()[0]
        rows, columns = (torch.tensor(starts, dtype=torch.float64) for starts in self._starts(image_size))
        corners = torch.cartesian_prod(columns, rows)
        return torch.cat([corners, corners + corners.new_tensor([width, height])], dim=1)

    def count(self, image_size: tuple[int, int]) -> int:
        """Return P, the number of tiles of an image, without building them."""
        rows, columns = self._starts(image_size)
        return len(rows) * len(columns)

    def _size_and_stride(self) -> tuple[tuple[int, int], tuple[int, int]]:
        size = as_size("size", self.size)
        if self.stride is not None:
            return size, as_size("stride", self.stride)
        down, across = as_size("overlap", self.overlap or 0, least=0)
        return size, (size[0] - down, size[1] - across)

    def _starts(self, image_size: tuple[int, int]) -> list[list[int]]:
        """Return where tiles start, downwards and across."""
        extents, (size, stride) = as_size("image_size", image_size), self._size_and_stride()
        if self.edge == "inside" and (extents[0] < size[0] or extents[1] < size[1]):
            raise ArgumentError(
                f"image_size must hold a tile of (height, width) = {size}, got {extents}: let it reach "
                "edge='over' the image, to be cut with a fill, or edge='drop' it"
            )
        return [_along(*each, self.edge) for each in zip(extents, size, stride, strict=True)]


def _along(extent: int, side: int, stride: int, edge: Edge) -> list[int]:
    """Return the starts of tiles along an axis."""
    room = extent - side
    if edge == "drop":
        return list(range(0, room + 1, stride))
    if edge == "inside":
        return [*range(0, room, stride), room]
    last = -(-max(room, 0) // stride) * stride  # the first that reaches the edge
    return list(range(0, min(last + 1, extent), stride))
