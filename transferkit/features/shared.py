"""Features of all patches of an image from a few maps of the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.features.forward import Forward
from transferkit.features.geometry import MapGeometry, map_coordinates
from transferkit.features.levels import Levels, plan_levels
from transferkit.features.read_map import read_map
from transferkit.features.resizing import Resizing


@dataclass(frozen=True)
class Shared:
    """What sharing needs to know beside the network.

    Attributes:
        geometry: How the trunk's map lies in its image.
        cells: Rows and columns of the map of one patch.
        levels: See :func:`plan_levels`.
        most_pixels: The largest image that the trunk is shown.
    """

    geometry: MapGeometry
    cells: tuple[int, int]
    levels: Levels
    most_pixels: int

    def __call__(
        self, forward: Forward, resizing: Resizing, image: Tensor, boxes: Tensor, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows of ``boxes``, (n,), and their features, (n, *shape), until every row was there once."""
        size, side = (image.shape[1], image.shape[2]), resizing.patch_size
        plan = plan_levels(boxes, size, side, self.levels)
        seen = resizing.seen(boxes, size)
        for level, scale in enumerate(plan.scales.tolist()):
            members = (plan.level_of == level).nonzero()[:, 0]
            height, width = self.level_size(size, scale, side)
            maps = forward.maps(resizing.whole(image, (height, width)))[0].float()
            rows, columns = seen[members][:, 1::2], seen[members][:, 0::2]  # (p, 2) each
            down = map_coordinates(rows, height / size[0], side, self.geometry.down, self.cells[0])
            across = map_coordinates(columns, width / size[1], side, self.geometry.across, self.cells[1])
            for some in torch.split(torch.arange(len(members)), batch_size):
                yield members[some], forward.pooled(read_map(maps, down[some], across[some]))

    def level_size(self, image_size: tuple[int, int], scale: float, patch_size: int) -> tuple[int, int]:
        """Return ``(height, width)`` of the image resized by ``scale``, as near as can be."""
        height, width = image_size
        scale = min(scale, (self.most_pixels / (height * width)) ** 0.5)
        return (
            self.geometry.down.nearest_size(height * scale, patch_size),
            self.geometry.across.nearest_size(width * scale, patch_size),
        )
