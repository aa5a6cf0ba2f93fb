"""Whether tensors fit a target layer as they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from transferkit.layers import Layer


def why_not(value: Tensor, target: Tensor) -> str:
    """Say why a tensor cannot be written into another as it is, or return an empty string.

    Between floating dtypes, and between complex ones, a tensor is cast as it is written.

    Example:
        >>> import torch
        >>> why_not(torch.zeros(2), torch.zeros(3)), why_not(torch.zeros(2), torch.zeros(2).half())
        ('another shape', '')
    """
    if value.shape != target.shape:
        return "another shape"
    alike = (value.is_floating_point(), value.is_complex()) == (target.is_floating_point(), target.is_complex())
    whole = not (value.is_floating_point() or value.is_complex())
    return "" if value.dtype == target.dtype or (alike and not whole) else "another kind of number"


def may_stay(layer: Layer, short: str, derived: frozenset[str]) -> str:
    """Say why a target tensor needs no source, or return an empty string.

    Args:
        layer: A target layer.
        short: One of its tensors.
        derived: Keys of the target's non-persistent buffers.
    """
    if layer.key(short) in derived:
        return "the model makes this buffer itself"
    # Batch norm looks at its batch counter only where it averages without momentum; many files have none.
    if short == "num_batches_tracked" and getattr(layer.module, "momentum", None) is not None:
        return "a counter that is used only without momentum"
    return ""


def fills(layer: Layer, values: Mapping[str, Tensor], derived: frozenset[str]) -> bool:
    """Tell whether tensors fill a target layer as they are."""
    return all(
        not why_not(values[short], tensor) if short in values else bool(may_stay(layer, short, derived))
        for short, tensor in layer.tensors.items()
    )
