"""Worker processes that look images up ahead of the loop: how results travel, and what is said when a worker dies."""

from __future__ import annotations

import io
import mmap
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import reduction
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from transferkit.errors import DataError, OutputError, listed
from transferkit.sampler._source import teller_of

Visit = tuple[int, int]
"""An epoch, and an image's place in the data set."""


# What a worker returns travels in memory of its own. The files in /dev/shm that torch would use are limited to 64 MB
# in a container, and what cannot be pickled is lost in torch's queue: either leaves the loop waiting for ever.


class RemoteTraceback(Exception):
    """Where in a worker an error came from, as text."""


class Parcel:
    """A worker's result, packed: a file in memory, which its receiver maps, or bytes if it is small or must be."""

    def __init__(self, result: object) -> None:
        head, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        _Packer(head, protocol=5, buffer_callback=buffers.append).dump(result)
        parts = [head.getbuffer(), *(buffer.raw() for buffer in buffers)]
        self._sizes = [len(part) for part in parts]
        self._memory = _stored([chunk for part in parts for chunk in (part, bytes(-len(part) % _ALIGNED))])

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Arrive as the result itself."""
        return _unpacked, (self._memory, self._sizes)


_ALIGNED = 64  # bytes
_SMALL = 1 << 16  # bytes that a pipe carries well; who keeps thousands of such results would run out of maps
_RECEIVING = threading.Lock()  # held while a socket is open that no error may leave so


class _Packer(pickle.Pickler):
    """Pickles tensors without copying them into the stream, and errors so that they are sure to arrive."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return _error, (_pickled(value), "".join(traceback.format_exception(value)))
        if type(value) is Tensor and value.device.type == "cpu" and value.numel() and not value.requires_grad:
            flat = value.contiguous().reshape(-1).view(torch.uint8)
            return _tensor, (pickle.PickleBuffer(flat.numpy().data), value.dtype, tuple(value.shape))
        return NotImplemented


def _stored(chunks: Sequence[bytes | memoryview]) -> Any:
    try:
        if sys.platform == "linux" and sum(map(len, chunks)) > _SMALL:
            with os.fdopen(os.memfd_create("transferkit"), "wb") as file:
                file.writelines(chunks)
                file.flush()
                return reduction.DupFd(file.fileno())
    except OSError:  # forbidden here, or too many files are open
        pass
    return b"".join(chunks)


def _unpacked(memory: Any, sizes: Sequence[int]) -> Any:
    parts, start = [], 0
    whole = memoryview(bytearray(memory) if isinstance(memory, bytes) else _mapped(memory))
    for size in sizes:
        parts.append(whole[start : start + size])
        start += size + -size % _ALIGNED
    return pickle.loads(parts[0], buffers=parts[1:])


def _mapped(memory: Any) -> mmap.mmap:
    with _RECEIVING:
        descriptor = memory.detach()
    try:
        return mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)


def _tensor(memory: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)


def _pickled(error: BaseException) -> bytes:
    """Return an error as bytes that can be read; one that cannot be sent becomes the nearest that it derives from."""
    for kind in type(error).__mro__:
        try:
            data = pickle.dumps(error if kind is type(error) else kind(f"{type(error).__name__}: {error}"))
            pickle.loads(data)
            return data
        except Exception:
            continue
    return pickle.dumps(RuntimeError(type(error).__name__))


def _error(data: bytes, text: str) -> BaseException:
    error: BaseException = pickle.loads(data)
    error.__cause__ = RemoteTraceback(f"in a worker process\n{text}")
    return error


# The workers.


class Workers:
    """Look up ``work[visit]`` in processes that live on from one iteration to the next.

    Iterations may overlap: each has workers of its own, and one set of them waits for the next iteration.

    Args:
        work: Indexed by visits; has the ``dataset`` that they are of.
        num_workers: Processes of one iteration; 0 for none.
        prefetch: Visits that each worker prefetches.
        pin_memory: Put tensors into pinned memory.
        **started: How they are: the ``seed`` of what is random in them, and ``worker_init_fn`` and
            ``multiprocessing_context`` as ``DataLoader`` has them.
    """

    def __init__(
        self, work: Any, num_workers: int, prefetch: int = 2, pin_memory: bool = False, **started: Any
    ) -> None:
        self._crew = partial(_Crew, work, num_workers, prefetch, pin_memory, **started)
        self._idle: _Crew | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": None}  # processes stay with the one that started them

    def results(self, visits: Sequence[Visit]) -> Generator[Any, None, None]:
        """Yield the result of each visit, in order.

        Raises:
            DataError: A worker died; names the image that it worked on. The next iteration has new workers.
            OutputError: No worker can be started.
        """
        crew, self._idle = self._idle, None
        if crew is None or not crew.whole():
            crew = self._crew()
        try:
            for result in crew.results(visits):
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            self._idle = crew if crew.whole() else self._idle


class _Crew:
    """The workers of one iteration at a time."""

    def __init__(self, work: Any, num_workers: int, prefetch: int, pin_memory: bool, **started: Any) -> None:
        self._visits: list[Visit] = []
        self._failed = False
        self._board = _Board(work.dataset, num_workers)
        self._loader = DataLoader(
            _InWorker(work, self._board),
            sampler=self._visits,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=partial(_enter, self._board, started.get("worker_init_fn")) if num_workers else None,
            multiprocessing_context=started.get("multiprocessing_context") if num_workers else None,
            # Else the loader draws a seed from the global generator.
            generator=torch.Generator().manual_seed(started.get("seed", 0)),
        )

    def results(self, visits: Sequence[Visit]) -> Iterator[Any]:
        self._visits[:] = visits
        try:
            yield from self._started()
        except (RuntimeError, OSError, EOFError) as error:
            self._failed = True
            if self._loader.num_workers:
                self._board.raise_if_lost(error, patience=2)
            raise

    def whole(self) -> bool:
        """Tell whether its workers can do another iteration."""
        if self._failed or not self._board.complete():
            _BOARDS[:] = [each for each in _BOARDS if each() not in (None, self._board)]
            return False
        return True

    def _started(self) -> Iterator[Any]:
        try:
            results = iter(self._loader)
        except OSError as error:
            raise OutputError(
                f"worker processes cannot be started: {error}; their locks need a few kB of /dev/shm. Make room "
                "there, or use num_workers=0, which needs none"
            ) from error
        if self._loader.num_workers:
            _BOARDS[:] = [*(each for each in _BOARDS if each() not in (None, self._board)), ref(self._board)]
            _name_images_in_signals()
        return results


def _enter(board: _Board, init: Callable[[int], object] | None, worker: int) -> None:
    board.enter(worker)
    if init is not None:
        init(worker)


def _as_it_is(result: Any) -> Any:
    return result


class _InWorker(Dataset[Any]):
    """The work, as a worker does it; a process without workers does it plainly."""

    def __init__(self, work: Any, board: _Board) -> None:
        self._work, self._board = work, board

    def __getitem__(self, visit: Visit) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self._work[visit]
        self._board.write(worker.id, visit[1])
        try:
            parcel = Parcel(self._work[visit])
        except Exception as error:
            parcel = Parcel(error)
        self._board.write(worker.id, _NOWHERE)
        return parcel


# Which image a worker was at when it died.

_NOWHERE = -1
_PIDS = "(pid"  # in an error of torch's that names the workers which it is about


class _Board:
    """Memory in which each worker writes its process and the image it is at, for who outlives it."""

    def __init__(self, dataset: Any, num_workers: int) -> None:
        self._dataset = dataset
        self._cells = multiprocessing.RawArray("q", [0, _NOWHERE] * num_workers)

    def __getstate__(self) -> dict[str, Any]:
        return {"_cells": self._cells}

    def enter(self, worker: int) -> None:
        self._cells[2 * worker] = os.getpid()

    def write(self, worker: int, image: int) -> None:
        self._cells[2 * worker + 1] = image

    def complete(self) -> bool:
        """Tell whether every worker has come and none has died."""
        return all(self._cells[::2]) and not self._lost()

    def raise_if_lost(self, error: BaseException, patience: float = 0) -> None:
        """Raise in place of ``error`` if a worker is dead, or is so within some seconds: its sockets close before."""
        until = time.monotonic() + patience
        while not (lost := self._lost()) and time.monotonic() < until:
            time.sleep(0.02)
        named = {int(number) for number in re.findall(r"\d+", str(error))} & set(lost)
        if not lost or (_PIDS in str(error) and not named):  # it is of other workers
            return
        images = [self._name(image) for worker, image in lost.items() if image != _NOWHERE]
        when = f"while it worked on {listed(images)}" if images else "while it waited for an image"
        raise DataError(
            f"a worker process died {when} ({str(error).rstrip('. ')}); if memory ran out, use a "
            "smaller num_workers or prefetch; with num_workers=0 images are read here, and show what is wrong"
        ) from error

    def _lost(self) -> dict[int, int]:
        """Return the image that each dead worker was at, by the worker's process."""
        alive = {child.pid for child in multiprocessing.active_children()}
        pairs = zip(self._cells[::2], self._cells[1::2], strict=True)
        return {process: image for process, image in pairs if process and process not in alive}

    def _name(self, image: int) -> str:
        with suppress(Exception):  # of the data set's, which may tell its ids in another form
            data, place = teller_of(self._dataset, image, "ids") or (None, 0)
            return f"image {image} of the data set ({data.ids[place]!r})"  # type: ignore[union-attr]
        return f"image {image} of the data set"


_BOARDS: list[ref[_Board]] = []  # no WeakSet, in whose callbacks an error of the signal's handler would be lost


def _name_images_in_signals() -> None:
    """Have torch's handler, which raises in whatever code runs when a worker dies, name the image too."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD"):
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and getattr(handler, "__module__", "").startswith("torch.utils.data."):
            signal.signal(signal.SIGCHLD, partial(_interrupt, handler))


def _interrupt(handler: Callable[..., Any], number: int, frame: Any) -> None:
    try:
        handler(number, frame)
    except RuntimeError as error:
        if _RECEIVING.locked():
            return  # who receives from the dead finds out, and who does not, within the seconds of the loader's look
        for board in filter(None, [each() for each in _BOARDS]):
            board.raise_if_lost(error)
        raise
