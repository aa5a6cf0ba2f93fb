"""Quantized weights in a source: codes that are no values without their scale."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from transferkit.errors import listed
from transferkit.layers import Layer

# weight_scale, weight_scale_inv, weight_zero_point, scales, qzeros, SCB, absmax, weight_amax: compressed-tensors,
# DeepSeek, AWQ and GPTQ, bitsandbytes, ModelOpt. Layers of plain values may have a scale too, but no codes.
_SCALE = re.compile(r"(^|_)(scales?|scb|absmax|amax|q?zeros?|zero_points?|zp)(_|$)", re.IGNORECASE)

WAY_OUT = (
    "dequantize the source first, a weight is its codes times their scale, and give the state dict of that"
)

UNASKED = (
    "whole numbers for a parameter may be the codes of a quantized weight, which is its codes times a scale: "
    "dequantize the source first; or, where they are the values themselves, handlers=['cast']"
)


class Scales:
    """The scales that a source keeps for its quantized tensors, beside them or in layers under them.

    Args:
        sources: All layers of the source.

    Example:
        >>> codes = torch.ones(2, 2, dtype=torch.int8)
        >>> source = Layer(0, "fc", "linear", {"weight": codes, "weight_scale": torch.ones(2, 1)})
        >>> target = Layer(0, "fc", "linear", {"weight": torch.zeros(2, 2)})
        >>> Scales([source]).codes(source, target)
        {'weight': "codes of a quantized weight, int8, whose 'fc.weight_scale' the target does not have"}
    """

    def __init__(self, sources: Iterable[Layer]) -> None:
        self._keys = [
            (layer.name, short, layer.key(short))
            for layer in sources
            for short in layer.tensors
            if _SCALE.search(short)
        ]

    def codes(self, source: Layer, target: Layer) -> dict[str, str]:
        """Say of each source tensor that is the codes of a quantized weight, for a target of values, that it is."""
        coded = [
            short
            for short, own in target.tensors.items()
            if short in source.tensors and _would_become_values(source.tensors[short], own)
        ]
        scales = self._left_out(source, target) if coded else []
        if not scales:
            return {}
        names = listed([repr(key) for key in scales], 3)
        dtypes = {short: str(source.tensors[short].dtype).removeprefix("torch.") for short in coded}
        return {
            short: f"codes of a quantized weight, {dtype}, whose {names} the target does not have"
            for short, dtype in dtypes.items()
        }

    def _left_out(self, source: Layer, target: Layer) -> list[str]:
        return [
            key
            for name, short, key in self._keys
            if (name == source.name and short not in target.tensors)
            or (source.name and name.startswith(f"{source.name}."))
        ]


def _would_become_values(value: Tensor, own: Tensor) -> bool:
    return own.is_floating_point() and value.dtype != own.dtype and _may_be_codes(value.dtype)


def _may_be_codes(dtype: torch.dtype) -> bool:
    """Tell whether a dtype is of whole numbers, or of floating ones so short that they want a scale."""
    whole = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    return whole or (dtype.itemsize == 1 and dtype != torch.bool)
