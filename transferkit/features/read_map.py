"""Read a feature map between its cells."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def read_map(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Read the map of one image bilinearly at the crossings of rows and columns, for many patches.

    Each value is a weighted sum of four cells, which ``embedding_bag`` computes at the speed of memory: with
    the channels of a cell side by side twice as fast as ``grid_sample`` (measured for 120 patches of AlexNet's
    and of EfficientNet-Lite0's
    maps: 38 and 17 ms against 67 and 95).

    Args:
        maps: (C, h, w), floating.
        down: (P, n) float64, rows to read at, in cells; beyond the map's edge the edge is read.
        across: (P, m) float64, columns likewise.

    Returns:
        (P, C, n, m), of the map's type and device, with the channels of a cell side by side in memory.

    Example:
        >>> maps = torch.arange(6.0).view(1, 2, 3)
        >>> read_map(maps, torch.tensor([[0.5]]), torch.tensor([[0.0, 1.25]]))
        tensor([[[[1.5000, 2.7500]]]])
    """
    channels, height, width = maps.shape
    table = maps.permute(1, 2, 0).reshape(height * width, channels)
    row, row_weight = _neighbours(down, height)  # (P, n, 2)
    column, column_weight = _neighbours(across, width)  # (P, m, 2)
    index = row[:, :, None, :, None] * width + column[:, None, :, None, :]  # (P, n, m, 2, 2)
    weight = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    cells = embedding_bag(
        index.reshape(-1, 4).to(maps.device),
        table,
        mode="sum",
        per_sample_weights=weight.reshape(-1, 4).to(table),
    )
    return cells.view(*index.shape[:3], channels).permute(0, 3, 1, 2)


def _neighbours(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the two cells around each place and their weights, both (P, n, 2)."""
    places = places.clamp(0, count - 1)
    first = places.floor().clamp(max=max(count - 2, 0))
    part = places - first
    index = torch.stack([first, (first + 1).clamp(max=count - 1)], dim=-1).long()
    return index, torch.stack([1 - part, part], dim=-1)
