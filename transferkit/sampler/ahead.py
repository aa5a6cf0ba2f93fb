"""Prepare the next minibatch while the device works on this one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from transferkit.sampler.batch import PatchBatch

Placed = tuple[int, PatchBatch]
"""A minibatch with its place in the epoch."""


def ahead(batches: Iterator[Placed], device: torch.device) -> Iterator[Placed]:
    """Yield ``batches``, each launched on a stream of its own before the last one is handed out.

    On cuda, uploads and cuts then run beside the model's work, and the model's stream waits for a minibatch only if
    it is not there yet. Elsewhere nothing runs beside the caller, and this changes nothing.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def launch() -> tuple[Placed | None, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return next(batches, None), side.record_event()

    upcoming, ready = launch()
    while upcoming is not None:
        current, done = upcoming, ready
        upcoming, ready = launch()
        consumer = torch.cuda.current_stream(device)
        consumer.wait_event(done)
        # The allocator must not give this memory away before the consumer's stream is through with it.
        current[1].pixels.record_stream(consumer)
        current[1].labels.record_stream(consumer)
        yield current
