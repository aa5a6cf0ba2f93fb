"""Which device a process works on."""

from __future__ import annotations

import torch

from transferkit.errors import ArgumentError
from transferkit.finetune.distributed import local_rank


def choose_device(name: str | None = None) -> torch.device:
    """Return the device for neon's words (cpu, gpu) and torch's (cuda:1); the fastest there is unless given.

    Each of the processes that ``torchrun`` starts on a machine gets a GPU of its own.

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
        raise ArgumentError(f"device must be cpu, gpu or cuda:N, got {name!r}") from None
    if device.type != "cuda":
        return device
    place = local_rank()
    index = device.index if place is None else place
    if place is not None and device.index is not None:
        raise ArgumentError(f"device must be cpu or gpu under torchrun, which deals out the GPUs, got {name!r}")
    count = torch.cuda.device_count()
    if (index or 0) >= count:
        raise ArgumentError(
            f"device {name} asks for CUDA device {index or 0} and torch sees {count}; use the cpu (-b cpu), no "
            "more processes than GPUs, or a build of torch for your GPU"
        )
    return device if index is None else torch.device("cuda", index)
