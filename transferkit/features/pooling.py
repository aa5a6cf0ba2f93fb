"""Split a trunk into what is shared between patches and the poolings that each patch is given alone."""

from __future__ import annotations

from torch import nn

POOLINGS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
"""Modules that pool, or pass on what they are given; in evaluation mode dropout does."""


def split_pooling(trunk: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split the poolings at the end of a sequential trunk off it; another trunk is all trunk.

    A pooling reads a map that was itself read between cells, at a patch's true place, and so picks its maxima
    where the network would. Done on the whole image's map it would put the patch on a grid twice as coarse.

    Returns:
        The trunk without them, and them; modules of the given one, not copies.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2))
        >>> split_pooling(net)[1]
        Sequential(
          (0): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
        )
    """
    if not isinstance(trunk, nn.Sequential):
        return trunk, nn.Identity()
    modules = list(trunk)
    end = len(modules)
    while end > 1 and isinstance(modules[end - 1], POOLINGS):
        end -= 1
    return nn.Sequential(*modules[:end]), nn.Sequential(*modules[end:])
