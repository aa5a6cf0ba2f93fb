"""Tensors that no layer of a plain model can take: quantised, packed, sharded. Refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from transferkit.errors import CheckpointError

# What marks a packed weight, and who packed it.
_PACKED = {
    ".qweight": "GPTQ or AWQ packed weights",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes 4-bit weights",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes 4-bit weights",
    ".SCB": "bitsandbytes 8-bit weights",
    "._packed_params": "torch's packed quantised weights",
    "_flat_param": "flattened FSDP shards",
}

_ADVICE = (
    "Load the file with what wrote it, make them plain with dequantize(), full_tensor() or to_dense(), save "
    "that and read it"
)


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not plain and dense, naming each.

    Raises:
        CheckpointError: Some are quantised, packed, sparse, nested or of a tensor subclass.
    """
    wrong = [f"{key} ({what})" for key, tensor in tensors.items() if (what := _obstacle(key, tensor))]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"not plain tensors: {', '.join(wrong[:3])}{more}. {_ADVICE}.")


def _obstacle(key: str, tensor: Tensor) -> str:
    """Return what keeps a tensor from being used, or an empty string."""
    if tensor.is_quantized:
        return f"quantised {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return type(tensor).__name__
    return next((what for mark, what in _PACKED.items() if key.endswith(mark)), "")
