"""Random choices that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """Return a generator for one purpose: the same for the same seed and keys, unrelated for any other.

    What is drawn for one image cannot depend on how many images, workers or ranks came before it, since no
    generator is shared between them.

    Args:
        seed: The run's seed.
        keys: What the numbers are for, such as ``(epoch, image, "balance")``.

    Returns:
        A generator on the cpu, wherever the numbers are used.

    Example:
        >>> draws = [torch.rand((), generator=generator(13, 0, 5, "balance")).item() for _ in range(2)]
        >>> draws[0] == draws[1]
        True
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
