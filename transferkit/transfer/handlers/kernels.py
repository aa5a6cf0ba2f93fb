"""Convolution kernels of another size, and two-dimensional ones for three-dimensional data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler


@register_handler("resize_kernel")
@dataclass(frozen=True)
class ResizeKernel:
    """Gives a convolution's kernel another spatial size.

    Args:
        method: ``"respond"``: the kernel that responds to a resized patch as the old one does to the patch, exactly
            when it grows and as nearly as possible when it shrinks. ``"pad"``: zeros around the kernel, which
            computes the same when the padding grows too.

    References:
        Beyer et al., "FlexiViT: One Model for All Patch Sizes", CVPR 2023, section 3.4.
    """

    method: Literal["respond", "pad"] = "respond"

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the layer with its kernel resized; ``None`` where more than the kernel's size differs."""
        old, new = source.tensors.get("weight"), target.tensors.get("weight")
        if old is None or new is None or old.ndim != new.ndim or old.ndim not in (3, 4, 5):
            return None
        size = tuple(new.shape[2:])
        if old.shape[:2] != new.shape[:2] or tuple(old.shape[2:]) == size:
            return None
        if self.method == "pad":
            margins = [(wide - narrow) for wide, narrow in zip(size, old.shape[2:], strict=True)]
            if any(margin < 0 or margin % 2 for margin in margins):
                return None
            weight = functional.pad(old, [margin // 2 for margin in reversed(margins) for _ in range(2)])
        else:
            weight = old.float()
            for axis, length in enumerate(size, start=2):
                weight = _respond(weight, axis, length)
            weight = weight.to(old.dtype)
        return {**source.tensors, "weight": weight}


@register_handler("inflate_kernel")
@dataclass(frozen=True)
class InflateKernel:
    """Makes a three-dimensional kernel of a two-dimensional one.

    Args:
        centre: ``False``: every slice is the kernel divided by the depth, so that a still video responds as its image
            did. ``True``: the kernel in the middle slice and zeros around it.

    References:
        Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, section 2.4.
    """

    centre: bool = False

    def __call__(self, source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
        """Return the layer with its kernel inflated; ``None`` where it is not 2-D for 3-D of the same size."""
        old, new = source.tensors.get("weight"), target.tensors.get("weight")
        if old is None or new is None or old.ndim != 4 or new.ndim != 5:
            return None
        depth = new.shape[2]
        if old.shape != (*new.shape[:2], *new.shape[3:]):
            return None
        slices = [old / depth] * depth
        if self.centre:
            slices = [old if place == depth // 2 else torch.zeros_like(old) for place in range(depth)]
        return {**source.tensors, "weight": torch.stack(slices, dim=2)}


def _respond(weight: Tensor, axis: int, length: int) -> Tensor:
    """Resize along one axis by the pseudoinverse of linear interpolation, transposed.

    Interpolation along several axes is the product of those along each, and so is its pseudoinverse.
    """
    old = weight.shape[axis]
    if old == length:
        return weight
    unit = torch.eye(old, dtype=torch.float64)[:, None]  # (old, 1, old): each row is one unit signal
    resize = functional.interpolate(unit, size=length, mode="linear", align_corners=False)[
        :, 0
    ]  # (old, length)
    matrix = torch.linalg.pinv(resize).to(weight)  # (length, old)
    return torch.movedim(torch.movedim(weight, axis, -1) @ matrix.mT, -1, axis)
