"""Where the cells of a feature map lie in their image, found by probing the network with NaN.

NaN spreads through every sum, product and maximum that it enters. So an image that is NaN outside a window
gives a map whose clean cells are those that depend on the window alone, and where the first of them turns as
the window's edge moves is where its receptive field begins. That holds for any module, whatever it is built
from, and needs no names of layers.

Float32 is tried first, which the cpu computes ten times faster. An algorithm that mixes neighboring outputs,
such as Winograd's, would spoil whole tiles and so give cells that are not evenly spaced; then float64 is asked,
where each output is the sum of its own inputs and of nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transferkit.errors import UnsharableError


@dataclass(frozen=True)
class AxisGeometry:
    """A map's cells along one axis: the center of cell i lies at ``offset + stride * i``.

    Attributes:
        stride: Distance between neighboring cells, pixels.
        offset: Center of the first cell's receptive field, pixels; pixel k reaches from k to k + 1, so that a
            network of one pixel's sight and stride 1 has offset 0.5.
        receptive_field: How many pixels a cell depends on, from the first to the last.
        step: Image sizes for which all this holds differ by a multiple of ``step``. 1 for most networks; the
            stride for those that pad by the size of what they are given, as TensorFlow's "same" does.

    Example:
        >>> AxisGeometry(stride=16, offset=31.5, receptive_field=163).field(2)
        (-18.0, 145.0)
    """

    stride: int
    offset: float
    receptive_field: int
    step: int = 1

    def field(self, cell: int) -> tuple[float, float]:
        """Return the pixels that a cell depends on, first and behind the last; outside the image they are
        padding.
        """
        center = self.offset + self.stride * cell
        return center - self.receptive_field / 2, center + self.receptive_field / 2

    def nearest_size(self, size: float, like: int) -> int:
        """Return the size nearest to ``size`` at which cells lie as they do in an image of size ``like``, and
        no smaller than that.
        """
        return max(like, like + self.step * round((size - like) / self.step))


@dataclass(frozen=True)
class MapGeometry:
    """A map's cells along both axes.

    Attributes:
        down: From the image's top to its bottom.
        across: From left to right.
    """

    down: AxisGeometry
    across: AxisGeometry


def map_coordinates(
    interval: Tensor, image_scale: float, patch_size: int, axis: AxisGeometry, cells: int
) -> Tensor:
    """Return where, on the map of a whole image, the cells of patches would lie along one axis.

    A patch of side w that begins at x is w f pixels wide in the image resized by f, and S wide where it is
    resized alone. Its cell i is centered ``(offset + stride * i)`` pixels from the patch's edge when alone, so
    ``r = w f / S`` times that in the whole image, and ::

        u[i] = (x f + (offset + stride i) r - offset) / stride

    is the same point counted in the whole map's cells. Where ``r = 1``, that is ``x f / stride + i``.

    Args:
        interval: (P, 2) float64, where each patch begins and ends, pixels of the image before resizing.
        image_scale: f, by how much the image was resized along this axis.
        patch_size: S.
        axis: The map's geometry along this axis.
        cells: How many cells, n, the map of a patch has.

    Returns:
        (P, n) float64.

    Example:
        >>> axis = AxisGeometry(stride=16, offset=31.5, receptive_field=163)
        >>> map_coordinates(torch.tensor([[32.0, 256.0]]), 1.0, 224, axis, 3)
        tensor([[2., 3., 4.]])
    """
    start, side = interval[:, 0, None], (interval[:, 1] - interval[:, 0])[:, None]  # (P, 1)
    ratio = side * image_scale / patch_size
    center = axis.offset + axis.stride * torch.arange(cells, dtype=interval.dtype)  # (n,)
    return (start * image_scale + center * ratio - axis.offset) / axis.stride


# The probe: NaN spreads to every cell that depends on its pixel, whatever the weights, and to no other. So an image
# that is NaN outside a window has clean cells exactly where a cell's receptive field lies in the window.
# Closing the window pixel by pixel, by bisection, tells where receptive fields begin and end.

_THIN = (1, 2, 4, 8, 16, 32, 64, 128)  # sides to try for the axis that is not asked about, to save work


class Clean(NamedTuple):
    """The first and the last cell that are not NaN, and how many cells there are."""

    first: int
    last: int
    cells: int


def probe_geometry(backbone: nn.Module, *, size: int = 224, longest: int = 4096) -> MapGeometry:
    """Return how the map of ``backbone`` lies in its image.

    The backbone itself is not touched: a copy is asked, in evaluation mode, with some twenty narrow images.

    Args:
        backbone: Maps (B, 3, H, W) to (B, C, h, w).
        size: S, a size that it certainly takes; found for this size is what holds for those that fit it (see
            :attr:`AxisGeometry.step`).
        longest: Up to which length images are tried until one is longer than what a cell sees.

    Raises:
        UnsharableError: Its cells do not depend on their surroundings alone, so a map of a whole image does not
            hold the maps of its patches; the message says what stands in the way.

    Example:
        >>> probe_geometry(nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2))).across
        AxisGeometry(stride=4, offset=2.5, receptive_field=11, step=1)
    """
    probed = copy.deepcopy(backbone).cpu().float().eval()
    _require_map(probed, size)
    try:
        return _probe(probed, size, longest)
    except _Uneven:
        return _probe(probed.double(), size, longest)


class _Uneven(UnsharableError):
    """The cells do not turn where evenly spaced ones would."""


def _probe(backbone: nn.Module, size: int, longest: int) -> MapGeometry:
    across = _probe_axis(_Axis(backbone, size, transposed=False), size, longest, None)
    down = _probe_axis(_Axis(backbone, size, transposed=True), size, longest, across)
    return MapGeometry(down=down, across=across)


class _Axis:
    """Asks a backbone about one of its axes, with images as narrow as it takes along the other."""

    def __init__(self, backbone: nn.Module, size: int, *, transposed: bool) -> None:
        self._backbone, self._transposed = backbone, transposed
        self.name = "height" if transposed else "width"
        self._narrow = size
        for narrow in (side for side in _THIN if side < size):
            try:
                self._narrow = narrow
                self.clean(size, 0, size)
                return
            except Exception:  # whatever a module raises for a size that it does not take
                self._narrow = size

    def clean(self, length: int, start: int, end: int) -> Clean | None:
        """Return which cells of an image of ``length`` depend on pixels ``start..end - 1`` alone, if any."""
        image = torch.randn(1, 3, self._narrow, length, generator=torch.Generator().manual_seed(0))
        image[..., :start] = image[..., end:] = (
            torch.nan
        )  # numbers inside the window are random: 0 * NaN is NaN too
        maps = _forward(self._backbone, image.mT if self._transposed else image)
        maps = maps.mT if self._transposed else maps
        clean = (~maps.isnan().flatten(0, -2).any(dim=0)).nonzero()[:, 0].tolist()
        return Clean(clean[0], clean[-1], maps.shape[-1]) if clean else None


def _probe_axis(ask: _Axis, size: int, longest: int, guess: AxisGeometry | None) -> AxisGeometry:
    """Return one axis's geometry; a right ``guess``, such as the other axis's, saves most of the work."""
    cells = _cells(ask, size)
    try:
        twice = _cells(ask, 2 * size)
    except Exception as error:
        raise UnsharableError(
            f"it takes images of {size} pixels and none twice as large along their {ask.name}: {error}"
        ) from error
    if twice <= cells:
        raise UnsharableError(
            f"its map does not grow with the image: {cells} cells along the {ask.name} of {size} pixels, "
            f"{twice} along {2 * size}"
        )
    stride = round(size / (twice - cells))
    if stride < 1:
        raise UnsharableError(f"its map is finer than its image along the {ask.name}")
    length, found = _long_enough(ask, size, stride, longest)
    if guess is None or not _agrees(ask.clean, guess, length):
        guess = _locate(ask.clean, length, stride, found)
        if not _agrees(ask.clean, guess, length):
            raise _Uneven(f"its cells are not evenly spaced along the {ask.name}")
    if _agrees(ask.clean, guess, length + 1):
        return guess
    return AxisGeometry(guess.stride, guess.offset, guess.receptive_field, step=guess.stride)


def _long_enough(ask: _Axis, size: int, stride: int, longest: int) -> tuple[int, Clean]:
    """Return an image length, and its four cells or more that see nothing of ``2 * stride`` pixels at its
    ends.
    """
    length = 2 * size
    while length <= max(longest, 2 * size):
        found = ask.clean(length, 2 * stride, length - 2 * stride)
        if found and found.last - found.first >= 3:
            return length, found
        length += size if length < 4 * size else length
    raise UnsharableError(
        f"each cell of its map sees more than {longest} pixels of the image's {ask.name}, or all of it, as with "
        "attention, squeeze-and-excitation or pooling over the whole image"
    )


def _locate(
    clean: Callable[[int, int, int], Clean | None], length: int, stride: int, found: Clean
) -> AxisGeometry:
    """Return the geometry from where the first and last clean cells turn as the window closes in on both sides.

    The first clean cell v begins to see its surroundings when the window begins one pixel after v's receptive
    field does: somewhere in the next ``stride`` pixels. So does the last one at the other end.
    """
    begin, end = 2 * stride, length - 2 * stride
    # The cell is clean when the edge moves by the first, and not when it moves by the second.
    left, right = (0, stride), (0, stride)
    while left[1] - left[0] > 1 or right[1] - right[0] > 1:
        by_left, by_right = sum(left) // 2, sum(right) // 2
        seen = clean(length, begin + by_left, end - by_right)
        first, last = (seen.first, seen.last) if seen else (found.last, found.first)
        left = (by_left, left[1]) if first <= found.first else (left[0], by_left)
        right = (by_right, right[1]) if last >= found.last else (right[0], by_right)
    start, stop = begin + left[0], end - right[0]  # of the receptive fields of the first and the last
    # From the first cell's field to the last one's there are so many strides; what is left is one field.
    field = stop - start - stride * (found.last - found.first)
    return AxisGeometry(stride, start + field / 2 - stride * found.first, field)


def _agrees(clean: Callable[[int, int, int], Clean | None], geometry: AxisGeometry, length: int) -> bool:
    """Tell whether an image's cells turn exactly where ``geometry`` says, at both ends."""
    seen = clean(length, 2 * geometry.stride, length - 2 * geometry.stride)
    if seen is None or seen.last - seen.first < 3:
        return False
    inner = (seen.first + 1, seen.last - 1)
    start, stop = int(geometry.field(inner[0])[0]), int(geometry.field(inner[1])[1])
    at, within = clean(length, start, stop), clean(length, start + 1, stop - 1)
    turned = (inner[0] + 1, inner[1] - 1)
    return at is not None and at[:2] == inner and (within[:2] == turned if within else inner[1] - inner[0] < 2)


def _cells(ask: _Axis, length: int) -> int:
    """Return how many cells an image has along the axis."""
    clean = ask.clean(length, 0, length)
    if clean is None:
        raise UnsharableError("it gives NaN for an image without any, so its geometry cannot be probed")
    return clean.cells


def _forward(backbone: nn.Module, image: Tensor) -> Tensor:
    like = next(backbone.parameters(), image)
    with torch.no_grad():
        maps: Tensor = backbone(image.to(like.dtype))
    return maps


def _require_map(backbone: nn.Module, size: int) -> None:
    maps = _forward(backbone, torch.zeros(1, 3, size, size))
    if not isinstance(maps, Tensor) or maps.ndim != 4:
        got = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
        raise UnsharableError(f"it must give a map (B, C, h, w) to be shared, and gives {got}")
