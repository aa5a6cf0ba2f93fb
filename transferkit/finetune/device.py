"""Which device a run works on."""

from __future__ import annotations

import torch

from transferkit.errors import ArgumentError


def choose_device(name: str | None = None) -> torch.device:
    """Return the device for neon's words (cpu, gpu) and torch's (cuda:1); the fastest there is unless given.

    Raises:
        ArgumentError: No such device here.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda" if name == "gpu" else name)
    except RuntimeError:
        raise ArgumentError(f"--backend must be cpu, gpu or cuda:N, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"--backend {name} asks for a CUDA device and torch sees {torch.cuda.device_count()}; "
            "use -b cpu, or install a build of torch for your GPU"
        )
    return device
