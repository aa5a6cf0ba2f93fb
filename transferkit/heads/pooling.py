"""From the map of a convolutional backbone to one vector per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.errors import did_you_mean, require


class GeM(nn.Module):
    """The generalized mean over a map, ``mean(x^p)^(1/p)``: the average at p = 1, near the maximum for large p.

    Args:
        p: At the start.
        learn: Whether p is trained.
        eps: What smaller values count as: the mean is of positive numbers.

    Shape:
        Input (B, C, H, W), output (B, C).

    Example:
        >>> maps = torch.tensor([1.0, 2.0, 3.0, 6.0]).view(1, 1, 2, 2)
        >>> [round(GeM(p)(maps).item(), 2) for p in (1, 3, 100)]
        [3.0, 3.98, 5.92]

    References:
        Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", PAMI 2018, section 3.2.
    """

    def __init__(self, p: float = 3.0, *, learn: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        require(p > 0, "p", "positive", p)
        self.p = nn.Parameter(torch.tensor(float(p)), requires_grad=learn)
        self.eps = eps

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C)."""
        # In float32 and relative to the maximum: x^p of half precision, or of large x, leaves its range.
        x = maps.float().clamp(min=self.eps)
        largest = x.amax(dim=(2, 3), keepdim=True)
        means = (x / largest).pow(self.p).mean(dim=(2, 3)).pow(1 / self.p)
        return (means * largest[:, :, 0, 0]).to(maps.dtype)

    def extra_repr(self) -> str:
        """Return p."""
        return f"p={self.p.item():g}"


class PyramidPool(nn.Module):
    """The maximum or average over the cells of several grids, side by side in one vector: where things are counts.

    Args:
        sides: Cells per axis of each grid; ``(1,)`` is plain pooling, ``(1, 2)`` adds the four quarters.
        kind: ``"average"`` or ``"max"``.

    Shape:
        Input (B, C, H, W), output (B, C x sum of squared sides).

    Example:
        >>> pool = PyramidPool((1, 2))
        >>> pool(torch.zeros(2, 8, 6, 6)).shape, pool.width(8)
        (torch.Size([2, 40]), 40)

    References:
        He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", ECCV 2014.
    """

    def __init__(self, sides: tuple[int, ...] = (1, 2, 3), kind: Literal["average", "max"] = "max") -> None:
        super().__init__()
        require(bool(sides) and min(sides) >= 1, "sides", "one or more numbers of at least 1", sides)
        require(kind in ("average", "max"), "kind", "'average' or 'max'", kind)
        self.sides, self.kind = tuple(sides), kind

    def width(self, channels: int) -> int:
        """Return the width of the vector for a number of channels."""
        return channels * sum(side * side for side in self.sides)

    def forward(self, maps: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, width)."""
        average = self.kind == "average"
        pool = functional.adaptive_avg_pool2d if average else functional.adaptive_max_pool2d
        return torch.cat([pool(maps, side).flatten(1) for side in self.sides], dim=1)

    def extra_repr(self) -> str:
        """Return the grids and what is taken in their cells."""
        return f"sides={self.sides}, kind={self.kind!r}"


POOLINGS: Mapping[str, Callable[[], nn.Module]] = {
    "average": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
    "max": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(1)),
    "gem": GeM,
    "pyramid": PyramidPool,
    "none": lambda: nn.Flatten(1),
}


def spatial_pooling(name: str) -> nn.Module:
    """Build a pooling by name.

    Args:
        name: ``"average"``, ``"max"``, ``"gem"``, ``"pyramid"``, or ``"none"``, which keeps every position and so
            needs maps of one size.

    Returns:
        A module (B, C, H, W) -> (B, width).

    Raises:
        ArgumentError: There is none of that name.

    Example:
        >>> {name: spatial_pooling(name)(torch.zeros(2, 8, 6, 6)).shape[1] for name in POOLINGS}
        {'average': 8, 'max': 8, 'gem': 8, 'pyramid': 112, 'none': 288}
    """
    require(name in POOLINGS, "pooling", f"one of {', '.join(POOLINGS)}{did_you_mean(name, POOLINGS)}", name)
    return POOLINGS[name]()
