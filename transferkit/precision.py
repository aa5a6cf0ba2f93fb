"""Half precision where a device computes faster in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def half_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float16 for a GPU that would only emulate it."""
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if emulated else torch.bfloat16


def mixed_precision(device: torch.device, enabled: bool | None = None) -> AbstractContextManager[None]:
    """Return the autocast context for a device: on by default on cuda (bfloat16 where it has it), else off."""
    if not (device.type == "cuda" if enabled is None else enabled):
        return nullcontext()
    return torch.autocast(device.type, dtype=half_dtype(device))
