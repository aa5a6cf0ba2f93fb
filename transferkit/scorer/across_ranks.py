"""Tallies of all ranks of a distributed run, brought together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from transferkit.errors import ArgumentError
from transferkit.scorer.tally import Tally

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


def in_process_group() -> bool:
    """Return whether this process is one of several that talk to each other."""
    return distributed.is_available() and distributed.is_initialized()


def gather_objects(value: Value, group: ProcessGroup | None = None) -> list[Value]:
    """Return the values of all ranks, in the order of the ranks; in a process of its own, the one there is."""
    if not in_process_group():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values


def gather_tallies(tally: Tally, settings: dict[str, Any], group: ProcessGroup | None = None) -> list[Tally]:
    """Return the tallies of all ranks of ``group``, in the order of the ranks, on every one of them.

    Args:
        tally: This rank's.
        settings: What must be the same on all ranks.
        group: ``None`` for all processes.

    Raises:
        ArgumentError: A rank has other settings; raised on every rank.
    """
    all_settings = gather_objects(settings, group)
    world = len(all_settings)
    if any(other != all_settings[0] for other in all_settings):
        listing = "; ".join(f"rank {rank}: {other}" for rank, other in enumerate(all_settings))
        raise ArgumentError(f"scorers must have the same settings on all ranks, got {listing}")
    on_gpu = distributed.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    gathered: dict[str, list[torch.Tensor]] = {}
    for name, tensor in vars(tally).items():
        mine = tensor.to(device).contiguous()
        everyones = [torch.empty_like(mine) for _ in range(world)]
        distributed.all_gather(everyones, mine, group=group)
        gathered[name] = [other.to(tensor.device) for other in everyones]
    return [Tally(**{name: tensors[rank] for name, tensors in gathered.items()}) for rank in range(world)]
