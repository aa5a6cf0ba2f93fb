"""Many devices: one process each, started by ``torchrun``, that train one model together.

Every function here does the natural thing in a process of its own too, so that a loop is written once.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from transferkit.errors import LostRankError, require

# torch 2.13 has a new name for it, and warns of the old one.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def in_process_group() -> bool:
    """Return whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized()


def world_size() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if in_process_group() else 1


def is_first() -> bool:
    """Return whether this is the one process that writes files."""
    return not in_process_group() or distributed.get_rank() == 0


def local_rank() -> int | None:
    """Return this process's place among those that ``torchrun`` started on this machine; ``None`` without it."""
    place = os.environ.get("LOCAL_RANK")
    return None if place is None else int(place)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it started this one; only the first of them prints.

    Args:
        device: What this process works on: they talk over nccl on cuda and over gloo elsewhere.

    Raises:
        LostRankError: Another process died or failed. What this one was at is lost; what was saved is not.
    """
    if local_rank() is None or not distributed.is_available():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    with Path(os.devnull).open("w") as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
        try:
            yield
        except RuntimeError as error:
            if _tells_of_lost_rank(error):
                raise LostRankError(
                    f"rank {distributed.get_rank()} lost touch with another of the {world_size()} ranks; see what "
                    f"that one or torchrun says, and go on from the last saved epoch ({error})"
                ) from error
            raise
    # A DistributedDataParallel lies in a reference cycle. One that outlives its group still has threads to join when
    # the interpreter ends, which then aborts in a quarter of all runs (torch 2.13, gloo).
    gc.collect()
    # Not after an error, when the others may not answer any more; the process then ends anyway.
    distributed.destroy_process_group()


def _tells_of_lost_rank(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Return ``network`` so that backward averages the gradients of all ranks; it starts as the first rank's.

    Statistics of norm layers are not exchanged at each step; :func:`average_statistics` does so once an epoch.
    """
    if not in_process_group():
        return network
    devices = [device] if device.type == "cuda" else None
    settings: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True, **settings)


def without_exchange(network: nn.Module) -> AbstractContextManager[Any]:
    """Return the context in which backward only adds to this rank's gradients: all of a step but its last."""
    exchanging: Any = network
    return exchanging.no_sync() if in_process_group() else nullcontext()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, the same on each."""
    if in_process_group():
        values = values.clone()
        distributed.all_reduce(values)
    return values


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """Give every rank the mean of what the ranks' norm layers have seen; frozen ones stay as they are."""
    if not in_process_group():
        return
    norms = [m for m in model.modules() if m.training and getattr(m, "running_mean", None) is not None]
    for buffer in [buffer for norm in norms for buffer in norm.buffers(recurse=False)]:
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= world_size()
        else:
            distributed.broadcast(buffer, src=0)


def spread_randomness(device: torch.device) -> None:
    """Let the ranks draw unlike random numbers, as dropout shall, all following from the first rank's generator.

    That one is saved with a run, so a resumed run draws what it would have drawn.
    """
    if not in_process_group():
        return
    seed = torch.randint(2**62, (1,)).to(device)
    distributed.broadcast(seed, src=0)
    torch.manual_seed(int(seed) + distributed.get_rank())


@contextmanager
def first_on_machine() -> Iterator[bool]:
    """Let the first process on each machine go through a block, then the others.

    Yields:
        Whether this is the first, which makes what the others find.
    """
    first = not in_process_group() or local_rank() == 0
    if not first:
        distributed.barrier()
    yield first
    if first and in_process_group():
        distributed.barrier()


# This process's place among those that share the work.


def place_among_ranks(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return ``(rank, world_size)``: what is given, else that of ``torch.distributed``, else of a process alone.

    Raises:
        ArgumentError: A rank outside the world.

    Example:
        >>> place_among_ranks()
        (0, 1)
    """
    ready = in_process_group()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if ready else 1
    if rank is None:
        rank = torch.distributed.get_rank() if ready else 0
    require(0 <= rank < world_size, "rank", f"from 0 to world_size - 1 = {world_size - 1}", rank)
    return rank, world_size
