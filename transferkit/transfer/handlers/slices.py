"""A narrower layer out of a wider one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler


@register_handler("slices")
def slices(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Take the leading part of every tensor, as large as the target's.

    Layers that feed each other stay consistent, since each takes the leading channels. What comes out is a start
    for training: it computes nothing that the wide network did.

    Args:
        source: A layer none of whose tensors is smaller than the target's.
        target: The layer to fill.

    Returns:
        Views of the source's tensors; ``None`` where a tensor is smaller, or none is larger.
    """
    tensors = dict(source.tensors)
    for short, own in target.tensors.items():
        value = source.tensors.get(short)
        if (
            value is None
            or value.ndim != own.ndim
            or any(a < b for a, b in zip(value.shape, own.shape, strict=True))
        ):
            return None
        if value.shape != own.shape:
            tensors[short] = value[tuple(slice(length) for length in own.shape)]
    return None if all(tensors[short] is source.tensors[short] for short in tensors) else tensors


slices.moves_states = True  # type: ignore[attr-defined]
