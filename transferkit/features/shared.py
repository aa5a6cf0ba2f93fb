"""Features of all patches of an image from a few maps of the whole image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from transferkit.backbones.geometry import MapGeometry, map_coordinates
from transferkit.backbones.surgery import evaluating
from transferkit.devices import mixed_precision
from transferkit.errors import ArgumentError, require
from transferkit.preprocessing import Preprocessing
from transferkit.sampler import crop_and_resize


@dataclass(frozen=True)
class Resizing:
    """The settings of :func:`crop_and_resize`.

    Attributes:
        patch_size: S.
        antialias: Widen the filter where an image shrinks.
        whole_pixels: Truncate boxes to whole pixels, at least one.
        dtype: Of the pixels.
    """

    patch_size: int
    antialias: bool
    whole_pixels: bool
    dtype: torch.dtype

    def patches(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes, (B, 4), cut and resized: (B, 3, S, S)."""
        return self._cut(image, boxes, (self.patch_size, self.patch_size))

    def whole(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the whole image resized, (1, 3, *size), by the filter that cuts patches too."""
        height, width = image.shape[1:]
        return self._cut(image, torch.tensor([[0.0, 0.0, width, height]]), size)

    def seen(self, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Return the part of the image that each box is cut from, (P, 4) float64."""
        if not self.whole_pixels:
            return boxes
        height, width = image_size
        start = torch.minimum(boxes[:, :2].floor(), boxes.new_tensor([width - 1, height - 1]))
        return torch.cat([start, torch.maximum(boxes[:, 2:].floor(), start + 1)], dim=1)

    def _cut(self, image: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        return crop_and_resize(
            image, boxes, size, self.antialias, whole_pixels=self.whole_pixels, dtype=self.dtype
        )


# Run a frozen backbone, and what each patch is given alone, over pixels.


@dataclass(frozen=True, eq=False)
class Forward:
    """A backbone and a pool with what belongs to running them.

    Attributes:
        backbone: Maps normalized pixels (B, 3, H, W) to (B, C, h, w).
        pool: Maps (B, C, n, n) to (B, *shape).
        preprocessing: Preprocessing that the backbone expects.
        amp: Half precision; ``None`` for on with cuda and off elsewhere.
        device: Where both are.
    """

    backbone: nn.Module
    pool: nn.Module
    preprocessing: Preprocessing
    amp: bool | None
    device: torch.device

    def maps(self, pixels: Tensor) -> Tensor:
        """Return the backbone's maps of pixels in 0..255."""
        # Channels last in memory: a third faster on the cpu, and what half precision wants on a GPU. Turned
        # around as bytes, before they are floats.
        pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        with mixed_precision(self.device, self.amp):
            maps: Tensor = self.backbone(self.preprocessing(pixels))
        return maps

    def pooled(self, maps: Tensor) -> Tensor:
        """Return the features, float32, of patches whose maps these are."""
        with mixed_precision(self.device, self.amp):
            features: Tensor = self.pool(maps)
        return features.float()

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features, (B, *shape) float32, of patches that are cut already.

        A patch's features do not depend on the others, in no bit; a minibatch of one would take another path
        through matrix products, so it is made two.
        """
        if len(pixels) == 1:
            return self.pooled(self.maps(pixels.repeat(2, 1, 1, 1)))[:1]
        return self.pooled(self.maps(pixels))

    def evaluating(self) -> AbstractContextManager[None]:
        """Put backbone and pool into evaluation mode, without gradients; leave each module as it was."""
        return evaluating(self.backbone, self.pool)


def device_of(*modules: nn.Module) -> torch.device:
    """Return where the first parameter is; the cpu for modules without any."""
    return next(
        (parameter.device for module in modules for parameter in module.parameters()), torch.device("cpu")
    )


# Decide at which sizes an image is shown to the backbone, and which of them serves which patch.

MOST_SCALES = 32
"""The most pyramid scales where each patch size could have its own."""

PyramidScales = int | Sequence[float] | None
"""The number of pyramid scales, or the scales themselves, or ``None`` for one for each size of patch."""


class PyramidPlan(NamedTuple):
    """The pyramid scales that an image needs, and the one that each patch is read from.

    Attributes:
        scales: (L,) float64: factors by which the image is resized, ascending.
        scale_of: (P,) int64: the place of each patch's factor in ``scales``.
    """

    scales: Tensor
    scale_of: Tensor


def check_pyramid_scales(pyramid_scales: PyramidScales) -> None:
    """Raise unless ``pyramid_scales`` is a number of scales, positive scales, or ``None``."""
    if pyramid_scales is None:
        return
    if isinstance(pyramid_scales, int):
        require(
            pyramid_scales >= 1, "pyramid_scales", "1 or more, a sequence of scales, or None", pyramid_scales
        )
    elif not len(pyramid_scales) or min(pyramid_scales) <= 0:
        raise ArgumentError(f"pyramid_scales must be positive scales, at least one, got {pyramid_scales!r}")


def plan_pyramid(
    boxes: Tensor, image_size: tuple[int, int], patch_size: int, pyramid_scales: PyramidScales
) -> PyramidPlan:
    """Return the pyramid scales that an image's patches need.

    A patch of area w h is as large as S x S in the image resized by ``f = S / sqrt(w h)``. Each patch takes the
    scale that is nearest to that in proportion.

    Args:
        boxes: (P, 4) xyxy, pixels, of positive area.
        image_size: ``(height, width)``, pixels.
        patch_size: S.
        pyramid_scales: ``None``: one for each size of patch, but at most ``MOST_SCALES``. A number: so many, spread
            geometrically from the smallest f to the largest. Scales as a :class:`PatchGrid` has them: at scale c a
            patch of S pixels is the image's shorter side over c.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 50, 50], [10, 0, 60, 50]])
        >>> plan_pyramid(boxes, (100, 200), 224, None)
        PyramidPlan(scales=tensor([2.2400, 4.4800], dtype=torch.float64), scale_of=tensor([0, 1, 1]))
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).double()
    if not (sides > 0).all():
        row = int((sides <= 0).any(dim=1).nonzero()[0])
        raise ArgumentError(f"boxes must have an area, got {boxes[row].tolist()} at row {row}")
    wanted = patch_size / sides.prod(dim=1).sqrt()  # (P,)
    scales = _scales(wanted, image_size, patch_size, pyramid_scales)
    if len(scales) == 1:
        return PyramidPlan(scales, torch.zeros(len(boxes), dtype=torch.int64))
    between = (scales[1:] * scales[:-1]).sqrt()
    scale_of = torch.bucketize(wanted, between)
    used, scale_of = torch.unique(scale_of, return_inverse=True)
    return PyramidPlan(scales[used], scale_of)


def _scales(
    wanted: Tensor, image_size: tuple[int, int], patch_size: int, pyramid_scales: PyramidScales
) -> Tensor:
    if pyramid_scales is not None and not isinstance(pyramid_scales, int):
        scales = torch.tensor(sorted(pyramid_scales), dtype=torch.float64)
        return scales * patch_size / min(image_size)
    if pyramid_scales is None:
        distinct = _distinct(wanted)
        if len(distinct) <= MOST_SCALES:
            return distinct
        pyramid_scales = MOST_SCALES
    low, high = wanted.min().log(), wanted.max().log()
    if pyramid_scales == 1:
        return ((low + high) / 2).exp()[None]
    return torch.linspace(float(low), float(high), pyramid_scales, dtype=torch.float64).exp()


def _distinct(wanted: Tensor) -> Tensor:
    """Return the different values, ascending; those that only rounding tells apart are one."""
    ordered = wanted.sort().values
    new = torch.ones(len(ordered), dtype=torch.bool)
    new[1:] = ordered[1:] > ordered[:-1] * (1 + 1e-6)
    return ordered[new]


# Read a feature map between its cells.


def read_map(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Read the map of one image bilinearly at the crossings of rows and columns, for many patches.

    Each value is a weighted sum of four cells, which ``embedding_bag`` computes at the speed of memory: with
    the channels of a cell side by side twice as fast as ``grid_sample`` (measured for 120 patches of AlexNet's
    and of EfficientNet-Lite0's
    maps: 38 and 17 ms against 67 and 95).

    Args:
        maps: (C, h, w), floating.
        down: (P, n) float64, rows to read at, in cells; beyond the map's edge the edge is read.
        across: (P, m) float64, columns to read at, in cells.

    Returns:
        (P, C, n, m), of the map's type and device, with the channels of a cell side by side in memory.

    Example:
        >>> maps = torch.arange(6.0).view(1, 2, 3)
        >>> read_map(maps, torch.tensor([[0.5]]), torch.tensor([[0.0, 1.25]]))
        tensor([[[[1.5000, 2.7500]]]])
    """
    channels, height, width = maps.shape
    table = maps.permute(1, 2, 0).reshape(height * width, channels)
    row, row_weight = _neighbors(down, height)  # (P, n, 2)
    column, column_weight = _neighbors(across, width)  # (P, m, 2)
    index = row[:, :, None, :, None] * width + column[:, None, :, None, :]  # (P, n, m, 2, 2)
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    cells = embedding_bag(
        index.reshape(-1, 4).to(maps.device),
        table,
        mode="sum",
        per_sample_weights=weight.reshape(-1, 4).to(table),
    )
    return cells.view(*index.shape[:3], channels).permute(0, 3, 1, 2)


def _neighbors(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the two cells around each place and their weights, both (P, n, 2)."""
    places = places.clamp(0, count - 1)
    first = places.floor().clamp(max=max(count - 2, 0))
    part = places - first
    index = torch.stack([first, (first + 1).clamp(max=count - 1)], dim=-1).long()
    return index, torch.stack([1 - part, part], dim=-1)


@dataclass(frozen=True)
class Shared:
    """What sharing needs to know beside the network.

    Attributes:
        geometry: How the backbone's map lies in its image.
        cells: Rows and columns of the map of one patch.
        pyramid_scales: See :func:`plan_pyramid`.
        most_pixels: The largest image that the backbone is shown.
    """

    geometry: MapGeometry
    cells: tuple[int, int]
    pyramid_scales: PyramidScales
    most_pixels: int

    def __call__(
        self, forward: Forward, resizing: Resizing, image: Tensor, boxes: Tensor, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows of ``boxes``, (n,), and their features, (n, *shape), until every row was there once."""
        size, side = (image.shape[1], image.shape[2]), resizing.patch_size
        plan = plan_pyramid(boxes, size, side, self.pyramid_scales)
        seen = resizing.seen(boxes, size)
        for place, scale in enumerate(plan.scales.tolist()):
            members = (plan.scale_of == place).nonzero()[:, 0]
            height, width = self.scaled_size(size, scale, side)
            maps = forward.maps(resizing.whole(image, (height, width)))[0].float()
            rows, columns = seen[members][:, 1::2], seen[members][:, 0::2]  # (p, 2) each
            down = map_coordinates(rows, height / size[0], side, self.geometry.down, self.cells[0])
            across = map_coordinates(columns, width / size[1], side, self.geometry.across, self.cells[1])
            for some in torch.split(torch.arange(len(members)), batch_size):
                yield members[some], forward.pooled(read_map(maps, down[some], across[some]))

    def scaled_size(self, image_size: tuple[int, int], scale: float, patch_size: int) -> tuple[int, int]:
        """Return ``(height, width)`` of the image resized by ``scale``, as near as can be."""
        height, width = image_size
        scale = min(scale, (self.most_pixels / (height * width)) ** 0.5)
        return (
            self.geometry.down.nearest_size(height * scale, patch_size),
            self.geometry.across.nearest_size(width * scale, patch_size),
        )
