"""This process's place among those that share the work."""

from __future__ import annotations

import torch

from transferkit.errors import require


def place_among_ranks(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return ``(rank, world_size)``: what is given, else that of ``torch.distributed``, else of a process alone.

    Raises:
        ArgumentError: A rank outside the world.

    Example:
        >>> place_among_ranks()
        (0, 1)
    """
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if ready else 1
    if rank is None:
        rank = torch.distributed.get_rank() if ready else 0
    require(0 <= rank < world_size, "rank", f"from 0 to world_size - 1 = {world_size - 1}", rank)
    return rank, world_size
