"""Training on several devices, with one process each, started by ``torchrun``, ``srun`` or ``mpirun``.

Every function also works in a process that runs alone, so a loop is written once.
"""

from __future__ import annotations

import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from importlib import import_module
from inspect import signature
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from transferkit.errors import ArgumentError, LostRankError, OutputError, TransferKitError, listed, require
from transferkit.launching import launched, local_rank, meeting_point, one_of_several

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


@contextmanager
def process_group(device: torch.device, *, timeout: float | None = None) -> Iterator[None]:
    """Join the process group that ``torchrun``, ``srun`` or ``mpirun`` started; only rank 0 prints.

    A group that is there already is joined as it is, and left in the end. A process started alone runs alone.

    Args:
        device: The device of this process. The backend is nccl on cuda and gloo elsewhere.
        timeout: Seconds that a rank waits for another one in an exchange; ``None`` for torch's default, 30 minutes
            with gloo. Longer work of some ranks alone, such as filling a cache, is waited for as long as it takes.

    Raises:
        LostRankError: Another process died, failed, or did not answer in time. The epoch in progress is lost; saved
            epochs are not.
        ArgumentError: There are several processes, and nothing says where they meet.
    """
    joined, place = in_process_group(), launched() if distributed.is_available() else None
    if not joined and place is None:
        warn_of_no_group()
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Imported later, as DistributedDataParallel does, its functions' defaults would hold this group for ever.
    import_module("torch.distributed.nn.functional")
    if not joined and place is not None:
        _meet(place, "nccl" if device.type == "cuda" else "gloo", timeout)
    with Path(os.devnull).open("w") as nowhere, nullcontext() if is_first() else redirect_stdout(nowhere):
        try:
            yield
        except RuntimeError as error:
            if _tells_of_lost_rank(error):
                raise LostRankError(f"{_what_happened(error)} ({error})") from error
            raise
    if joined:
        return
    # A group that something still holds keeps its threads, and an interpreter that ends beside them may abort (torch
    # 2.13, gloo). A DistributedDataParallel, which lies in a reference cycle, is such a holder.
    gc.collect()
    # Only without an error: after one the other ranks may no longer answer, and the process ends anyway.
    distributed.destroy_process_group()


_groups = count()


def _meet(place: Mapping[str, str], backend: str, timeout: float | None) -> None:
    """Begin the group of this process and the others."""
    os.environ.update({**place, **meeting_point(place)})
    # torchrun keeps one store for all groups and restarts of a job, in which gloo would find the addresses of earlier
    # ones (torch 2.13). Of several machines' torchruns each counts its own restarts.
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "0"
    how: dict[str, Any] = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
    try:
        store, rank, ranks = next(rendezvous("env://", **how))
        own = distributed.distributed_c10d.PrefixStore(f"transferkit/{restart}/{next(_groups)}", store)
        distributed.init_process_group(backend, store=own, rank=rank, world_size=ranks, **how)
    except RuntimeError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        used = "EADDRINUSE" in str(error) or "address already in use" in str(error)
        way = (
            "another program has that port; set MASTER_PORT to a free one"
            if used
            else "see the other ranks' errors"
        )
        raise LostRankError(
            f"rank {place['RANK']} of {place['WORLD_SIZE']} did not meet the others at {where}: {way} ({error})"
        ) from error


def _tells_of_lost_rank(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _what_happened(error: RuntimeError) -> str:
    """Say why an exchange failed: a rank is gone, or slow."""
    rank, way = distributed.get_rank(), "resume from the last saved epoch"
    if "timed out" not in str(error).lower():
        return (
            f"rank {rank} lost touch with another of the {world_size()} ranks; see that rank's or torchrun's error, "
            f"and {way}"
        )
    waited = _store().timeout.total_seconds()
    slow = listed([f"rank {other}" for other in _not_waiting()], 8) or "another rank"
    return (
        f"rank {rank} waited {waited:.0f} s for {slow}, which is slow, hangs, or cannot be reached; look at what it "
        f"does, allow it more with process_group(device, timeout=...) or --timeout, and {way}"
    )


def _not_waiting() -> list[int]:
    """Return the ranks that do not wait for another one as this one does, as far as that can be found out soon."""
    found: list[int] = []

    def ask() -> None:
        with suppress(RuntimeError):
            store = _store()
            store.add(f"transferkit/waits/{distributed.get_rank()}", 1)
            time.sleep(1)  # their time is up at nearly the same time
            ranks = range(world_size())
            found.extend(rank for rank in ranks if not store.add(f"transferkit/waits/{rank}", 0))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(5)  # the store itself may be out of reach
    return found


def _store() -> Any:
    """Return a connection of its own to the store of the group."""
    store: Any = distributed.distributed_c10d._get_default_store()
    return store.clone()


def warn_of_no_group() -> None:
    """Warn if this process is evidently one of several, and does not train together with them."""
    if not in_process_group() and (this := one_of_several()):
        warnings.warn(
            f"this is {this}, and there is no process group: each process works alone, on all photos, and writes "
            "what the others write; begin with `with finetune.process_group(device):` under torchrun, srun or "
            "mpirun, elsewhere with torch.distributed.init_process_group",
            stacklevel=3,
        )


# What all ranks find out together.


def gather_objects(value: Value, group: distributed.ProcessGroup | None = None) -> list[Value]:
    """Return the values of all ranks, in the order of the ranks; in a process of its own, the one there is."""
    if not in_process_group():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values


def on_all_ranks(attempt: Callable[[], Value]) -> Value:
    """Call ``attempt``, which exchanges nothing, on every rank; where it fails on any, raise that on all.

    It may take some ranks much longer than others: see :func:`awaited`.

    Raises:
        TransferKitError: The first rank's that failed, with its number.
    """
    if not in_process_group():
        return attempt()
    with awaited():
        found = _attempted(attempt)
    _raise_first(gather_objects(found if isinstance(found, TransferKitError) else None))
    return found  # type: ignore[no-any-return]


def require_same_on_all_ranks(start: str, facts: Callable[[], Mapping[str, object]]) -> None:
    """Raise on all ranks unless all begin the same work with the same facts; one exchange.

    Args:
        start: What begins, such as ``"fit"``.
        facts: Gives what must be the same, as values that print themselves, by name; not called in a process of its
            own. Its errors are raised on all ranks.

    Raises:
        ArgumentError: Naming what differs, and the ranks.

    Example:
        >>> require_same_on_all_ranks("fit", lambda: {"seed": 1})
    """
    if not in_process_group():
        warn_of_no_group()
        return
    told = gather_objects(_attempted(lambda: {"work": start, **{name: str(v) for name, v in facts().items()}}))
    _raise_first(told)
    names = dict.fromkeys(name for one in told for name in one)
    differ = [name for name in names if len({one.get(name) for one in told}) > 1]
    if differ:
        differ = ["work"] if "work" in differ else differ
        raise ArgumentError(
            f"the {len(told)} ranks cannot begin together, since they differ; give all of them the same:\n"
            + "\n".join(f"  {name}: {_by_value([one.get(name) for one in told])}" for name in differ[:12])
            + (f"\n  and {len(differ) - 12} more" if len(differ) > 12 else "")
        )


def _attempted(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except TransferKitError as error:
        return error


def _raise_first(found: list[Any]) -> None:
    for rank, failed in enumerate(found):
        if isinstance(failed, TransferKitError):
            raise type(failed)(f"rank {rank}: {failed}")


def _by_value(values: list[str | None]) -> str:
    """Say which ranks have which value."""
    ranks = {value: [str(rank) for rank, other in enumerate(values) if other == value] for value in values}
    return "; ".join(
        f"{'none' if value is None else value} on rank{'s' if len(who) > 1 else ''} {listed(who, 8)}"
        for value, who in ranks.items()
    )


BEAT = 5.0  # seconds between two signs of life of a rank
SILENCE = 120.0  # seconds without one after which a rank is gone
_blocks = count()


class _Pulse(Thread):
    """Tells the other ranks that this one lives, and hears the same of them, until all have come to a block's end."""

    def __init__(self, block: int) -> None:
        super().__init__(name="transferkit-pulse", daemon=True)
        self._store = distributed.distributed_c10d.PrefixStore(f"transferkit/{block}", _store())
        self._rank, self._world = distributed.get_rank(), world_size()
        self._heard = dict.fromkeys(range(self._world), (0, time.monotonic()))
        self.came, self.all_came, self.failed = Event(), Event(), Event()

    def run(self) -> None:
        try:
            while not self.came.wait(BEAT):
                self._beat()
            if self.failed.is_set():  # this rank did not come to the end
                return
            self._store.add("came", 1)
            pause = 0.005
            while self._store.add("came", 0) < self._world and not self.failed.is_set():
                self._beat()
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            self.all_came.set()
        except RuntimeError:  # the store is gone, and with it the rank or the launcher that kept it
            self.failed.set()

    def silent(self) -> list[int]:
        """Return the ranks that gave no sign of life for too long."""
        now = time.monotonic()
        return [rank for rank, (_, heard) in self._heard.items() if now - heard > SILENCE]

    def _beat(self) -> None:
        for rank, (before, _) in self._heard.items():
            beats = self._store.add(str(rank), int(rank == self._rank))
            if beats != before:
                self._heard[rank] = (beats, time.monotonic())


@contextmanager
def awaited() -> Iterator[None]:
    """Wait at a block's end until all ranks have come there, for as long as they give signs of life.

    For work that takes some ranks much longer than others, beyond any timeout. Every rank must come here.

    Raises:
        LostRankError: A rank has died, or cannot be reached.
    """
    if not in_process_group():
        yield
        return
    pulse = _Pulse(next(_blocks))
    pulse.start()
    try:
        yield
        pulse.came.set()
        while not pulse.all_came.wait(0.5):
            if pulse.failed.is_set() or pulse.silent():
                who = listed([f"rank {rank}" for rank in pulse.silent()], 8) or "the rank that keeps the store"
                raise LostRankError(f"rank {distributed.get_rank()} heard nothing more of {who}; see its error")
    finally:
        pulse.failed.set()
        pulse.came.set()


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
    with awaited():
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
    first = not in_process_group() or not local_rank()
    with awaited():
        if first:
            yield True
    if not first:
        yield False
