"""Take tensors in another kind of number: integers for floats, floats for integers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler


@register_handler("cast")
def cast(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Cast the tensors of a layer to the target's dtypes.

    Between floating dtypes, and between complex ones, that is done anyway and needs no handler.

    Args:
        source: A layer with tensors of the target's shapes.
        target: The layer to fill.

    Returns:
        The source's tensors in the target's dtypes; ``None`` where a shape differs.
    """
    shared = [short for short in target.tensors if short in source.tensors]
    if any(source.tensors[short].shape != target.tensors[short].shape for short in shared):
        return None
    return {short: source.tensors[short].to(target.tensors[short].dtype) for short in shared}


cast.moves_states = True  # type: ignore[attr-defined]
