"""Where the cells of a feature map lie in the image that they were computed from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisGeometry:
    """A map's cells along one axis: the centre of cell i lies at ``offset + stride * i``.

    Attributes:
        stride: Distance between neighbouring cells, pixels.
        offset: Centre of the first cell's receptive field, pixels; pixel k reaches from k to k + 1, so that a
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
        centre = self.offset + self.stride * cell
        return centre - self.receptive_field / 2, centre + self.receptive_field / 2

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
    resized alone. Its cell i is centred ``(offset + stride * i)`` pixels from the patch's edge when alone, so
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
    centre = axis.offset + axis.stride * torch.arange(cells, dtype=interval.dtype)  # (n,)
    return (start * image_scale + centre * ratio - axis.offset) / axis.stride
