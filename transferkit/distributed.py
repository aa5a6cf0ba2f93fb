"""Training on several devices, with one process each, started by ``torchrun``.

Every function also works in a process that runs alone, so a loop is written once.
"""

from __future__ import annotations

import gc
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from transferkit.errors import ArgumentError, LostRankError, OutputError, require

Value = TypeVar("Value")

# torch 2.13 renamed this argument of DistributedDataParallel and warns about the old name.
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


def place_among_ranks(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Return ``(rank, world_size)``: as given, else those of ``torch.distributed``, else ``(0, 1)``."""
    ready = in_process_group()
    if world_size is None:
        world_size = distributed.get_world_size() if ready else 1
    if rank is None:
        rank = distributed.get_rank() if ready else 0
    require(0 <= rank < world_size, "rank", f"from 0 to world_size - 1 = {world_size - 1}", rank)
    return rank, world_size


def is_first() -> bool:
    """Tell whether this is rank 0, the process that writes files; ``True`` for a process that runs alone."""
    return not in_process_group() or distributed.get_rank() == 0


def local_rank() -> int | None:
    """Return this process's rank among those that ``torchrun`` started on this machine; ``None`` without it."""
    place = os.environ.get("LOCAL_RANK")
    return None if place is None else int(place)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group that ``torchrun`` started, if it started this process; only rank 0 prints.

    Args:
        device: The device of this process. The backend is nccl on cuda and gloo elsewhere.

    Raises:
        LostRankError: Another process died or failed. The epoch in progress is lost; saved epochs are not.
    """
    if local_rank() is None or not distributed.is_available():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Imported later, as DistributedDataParallel does, its functions' defaults would hold this group for ever.
    import_module("torch.distributed.nn.functional")
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    with Path(os.devnull).open("w") as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
        try:
            yield
        except RuntimeError as error:
            if _tells_of_lost_rank(error):
                raise LostRankError(
                    f"rank {distributed.get_rank()} lost touch with another of the {world_size()} ranks; see that "
                    f"rank's or torchrun's error, and resume from the last saved epoch ({error})"
                ) from error
            raise
    # A group that something still holds keeps its threads, and an interpreter that ends beside them may abort (torch
    # 2.13, gloo). A DistributedDataParallel, which lies in a reference cycle, is such a holder.
    gc.collect()
    # Only without an error: after one the other ranks may no longer answer, and the process ends anyway.
    distributed.destroy_process_group()


def _tells_of_lost_rank(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap ``network`` in DistributedDataParallel, so that backward averages the gradients of all ranks."""
    if not in_process_group() or isinstance(network, DistributedDataParallel):
        return network
    devices = [device] if device.type == "cuda" else None
    settings: dict[str, Any] = {_SYNC_BUFFERS: False}  # average_statistics does that once per epoch
    # A parameter that takes no part in a loss must be left alone, as in one process.
    settings |= {"find_unused_parameters": True, "gradient_as_bucket_view": True}
    _take_warning(DistributedDataParallel(nn.PReLU(device=device), find_unused_parameters=True), device)
    return DistributedDataParallel(network, device_ids=devices, **settings)


def _take_warning(shared: nn.Module, device: torch.device) -> None:
    """Let torch warn, unseen, of a network that uses all its parameters, as it does once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Python's filters see what torch says while it calls a function; else it goes straight to stderr.
        torch.zeros(1).apply_(lambda one: shared(torch.full((1, 1), one, device=device)).item())


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, whose forward pass all ranks must run together."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def is_sharded(network: nn.Module) -> bool:
    """Tell whether each rank holds a part of the parameters only, as under ``fully_shard``."""
    kinds = {
        kind.__name__ for part in [*network.modules(), *network.parameters()] for kind in type(part).__mro__
    }
    return not kinds.isdisjoint({"FSDPModule", "FullyShardedDataParallel", "DTensor"})


def no_sync(network: nn.Module) -> AbstractContextManager[Any]:
    """Return DistributedDataParallel's ``no_sync``: backward accumulates gradients without exchange."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def any_rank(answer: bool) -> bool:
    """Tell whether the answer of any rank is yes, the same on each."""
    return any(gather_objects(bool(answer)))


def agreed(name: str, value: float) -> float:
    """Return a number that all ranks must have found alike, the first's; refuse others."""
    values = gather_objects(value)
    nan = [math.isnan(each) for each in values]
    if not all(nan) and not all(math.isclose(each, values[0], rel_tol=1e-6) for each in values):
        raise ArgumentError(
            f"{name} must give the same on all ranks, got "
            + ", ".join(f"{one:g} on rank {rank}" for rank, one in enumerate(values))
            + "; compute it from the photos of all ranks, as finetune.score_images does"
        )
    return values[0]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, the same on each."""
    if in_process_group():
        values = values.clone()
        distributed.all_reduce(values)
    return values


def gather_objects(value: Value, group: distributed.ProcessGroup | None = None) -> list[Value]:
    """Return the values of all ranks, in the order of the ranks; in a process of its own, the one there is."""
    if not in_process_group():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Let a network in training mode see a filler: its running statistics and random numbers are as before."""
    buffers = [b for part in model.modules() if type(part) is not nn.SyncBatchNorm for b in part.buffers(False)]
    before = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng({b.device.index for b in model.parameters() if b.is_cuda}):
        yield
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


@torch.no_grad()
def average_statistics(model: nn.Module, seen: float) -> None:
    """Average the running statistics of norm layers in training mode over all ranks, by how much each has seen."""
    weight = torch.tensor(float(seen), device=next(model.parameters()).device)
    if not in_process_group() or not (total := sum_over_ranks(weight)):
        return
    norms = [m for m in model.modules() if m.training and getattr(m, "running_mean", None) is not None]
    for buffer in [buffer for norm in norms for buffer in norm.buffers(recurse=False)]:
        if buffer.is_floating_point():
            buffer *= weight / total
            distributed.all_reduce(buffer)
        else:
            distributed.all_reduce(buffer, distributed.ReduceOp.MAX)


def seed_ranks_differently(device: torch.device) -> None:
    """Seed each rank differently so that dropout masks differ."""
    if not in_process_group():
        return
    # All seeds follow from rank 0's generator. A run saves that one, so a resumed run draws the same masks.
    seed = torch.randint(2**62, (1,)).to(device)
    distributed.broadcast(seed, src=0)
    torch.manual_seed(int(seed) + distributed.get_rank())


def first_tries(attempt: Callable[[], object]) -> None:
    """Call ``attempt`` on rank 0; where that raises an ``OutputError``, raise it on all ranks.

    Every rank must come here, lest the others wait for one that was refused.
    """
    problem: list[OutputError | None] = [None]
    if is_first():
        try:
            attempt()
        except OutputError as error:
            problem = [error]
    if in_process_group():
        distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise problem[0]


@contextmanager
def first_on_machine() -> Iterator[bool]:
    """Run a block in the first process on each machine, and then in the other processes.

    Yields:
        Whether this is the first process, which should make the files that the others find.
    """
    first = not in_process_group() or local_rank() == 0
    if not first:
        distributed.barrier()
    yield first
    if first and in_process_group():
        distributed.barrier()
