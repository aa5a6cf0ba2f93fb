"""The device of a process, mixed precision, and huge pages."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from transferkit.errors import ArgumentError
from transferkit.launching import local_rank

SWITCH = "THP_MEM_ALLOC_ENABLE"
"""Environment variable that asks PyTorch 2.2 and later for huge pages; earlier versions ignore it."""


def choose_device(name: torch.device | str | None = None) -> torch.device:
    """Return a device by neon's names (cpu, gpu) or torch's (cuda:1).

    Each of the processes that ``torchrun`` starts on a machine gets a GPU of its own.

    Args:
        name: A device, or its name; ``None`` chooses cuda where torch sees a GPU, else the CPU.

    Raises:
        ArgumentError: There is no such device on this machine.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if isinstance(name, torch.device):
        name = str(name)
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


def half_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float16 for a GPU that only emulates bfloat16."""
    emulated = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if emulated else torch.bfloat16


def mixed_precision(device: torch.device, enabled: bool | None = None) -> AbstractContextManager[None]:
    """Return the autocast context for a device; by default it is on with cuda and off elsewhere."""
    if not (device.type == "cuda" if enabled is None else enabled):
        return nullcontext()
    return torch.autocast(device.type, dtype=half_dtype(device))


def use_huge_pages() -> None:
    """Ask torch to keep tensors of 2 MB and more on huge pages, in this process and in those that it starts.

    It matters on Linux, where the system leaves the choice to programs: in pages of 4 kB a map of 100 MB causes
    25,000 page faults. EfficientNet-Lite0 on whole photos became 1.5 times as fast, AlexNet's convolutions no faster
    (``tests.benchmarks.whole_photos``). Elsewhere it changes nothing.

    Call it before the first tensor is made, which is when torch reads the setting. An environment variable
    ``THP_MEM_ALLOC_ENABLE`` that is already set is kept.
    """
    os.environ.setdefault(SWITCH, "1")
