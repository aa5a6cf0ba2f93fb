"""Half precision where a device computes faster in it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def mixed_precision(device: torch.device, enabled: bool | None = None) -> AbstractContextManager[None]:
    """Return the autocast context for a device: on by default on cuda (bfloat16 where it has it), else off."""
    if enabled is None:
        enabled = device.type == "cuda"
    half = torch.bfloat16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        half = torch.float16
    return torch.autocast(device.type, dtype=half, enabled=enabled)
