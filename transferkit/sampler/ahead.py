"""Prepare the next minibatches while the device works on this one."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, Queue
from threading import Event, Thread

import torch

from transferkit.sampler.batch import PatchBatch

Placed = tuple[int, PatchBatch]
"""A minibatch with its place in the epoch."""

_AHEAD = 2  # minibatches that are ready at most, besides the one in work


def ahead(batches: Iterator[Placed], device: torch.device) -> Iterator[Placed]:
    """Yield ``batches``, on cuda made by a thread and on a stream of their own.

    To plan, upload and cut a photo's patches keeps the host busy about as long as to launch the model's work on them:
    with one thread for both a GPU idled for a third of the time. The model's stream waits for a minibatch only if it
    is not there yet. Elsewhere nothing runs beside the caller, and this changes nothing.
    """
    if device.type != "cuda":
        yield from batches
        return
    maker = _Maker(batches, device)
    try:
        for placed, done in maker:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_event(done)
            # The allocator must not give this memory away before the consumer's stream is through with it.
            placed[1].pixels.record_stream(consumer)
            placed[1].labels.record_stream(consumer)
            yield placed
    finally:
        maker.stop()


class _Maker:
    """Makes minibatches in a thread, each with an event that comes when it is ready on the device."""

    def __init__(self, batches: Iterator[Placed], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._made: Queue[tuple[Placed, torch.cuda.Event] | BaseException | None] = Queue(_AHEAD)
        self._stopped = Event()
        # The first is made by the caller, so that workers are started from its thread, as they should be.
        self._first = self._launch()
        self._thread = Thread(target=self._work, name="transferkit-ahead", daemon=True)

    def __iter__(self) -> Iterator[tuple[Placed, torch.cuda.Event]]:
        if self._first is None:
            return
        self._thread.start()
        yield self._first
        while (made := self._made.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made

    def stop(self) -> None:
        """End the thread, whatever it is at."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._made.get(timeout=0.01)  # it may wait for room
            except Empty:
                continue
        self._batches.close()  # type: ignore[attr-defined]

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                made = self._launch()
                self._made.put(made)
                if made is None:
                    return
        except BaseException as error:  # for the thread that iterates to raise
            self._made.put(error)

    def _launch(self) -> tuple[Placed, torch.cuda.Event] | None:
        with torch.cuda.stream(self._side):
            placed = next(self._batches, None)
            return None if placed is None else (placed, self._side.record_event())
