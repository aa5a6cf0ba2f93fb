"""Whether the torch at hand reads untrusted files safely."""

from __future__ import annotations

import re
import warnings

import torch

from transferkit.errors import CheckpointError


def check_torch_version(version: str | None = None) -> None:
    """Refuse a torch whose ``weights_only`` runs code, and warn of one in which it corrupts memory.

    Args:
        version: ``torch.__version__`` if not given.

    Raises:
        CheckpointError: torch is older than 2.6.

    References:
        CVE-2025-32434 (fixed in torch 2.6.0), CVE-2026-24747 (fixed in torch 2.10.0).
    """
    version = version or torch.__version__
    numbers = re.match(r"(\d+)\.(\d+)", version)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if release < (2, 6):
        raise CheckpointError(
            f"torch {version} runs code from a file even with weights_only=True (CVE-2025-32434). "
            "Upgrade to torch 2.10 or newer, or have the weights saved as safetensors."
        )
    if release < (2, 10):
        warnings.warn(
            f"torch {version}: a hostile file can corrupt memory even with weights_only=True (CVE-2026-24747). "
            "Read only files you trust, or upgrade to torch 2.10 or newer.",
            stacklevel=2,
        )
