"""The training loop: one epoch, and as many as are asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from transferkit.errors import DivergedError
from transferkit.finetune import distributed
from transferkit.finetune.loop_settings import LoopSettings
from transferkit.finetune.optimization import PerStep
from transferkit.finetune.profiling import profiled, waited_for
from transferkit.finetune.run import EpochRecord, Run
from transferkit.finetune.stepper import Stepper
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler, PatchBatch


def fit(
    run: Run,
    sampler: MultiscaleSampler,
    epochs: int,
    *,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    after_epoch: Callable[[Run], object] | None = None,
    stop: Callable[[Run], bool] | None = None,
    progress: Progress = False,
) -> list[EpochRecord]:
    """Train until ``run.epoch`` is ``epochs``, or ``stop`` says so.

    Args:
        run: Where to start; a restored run goes on where it was.
        sampler: In training mode.
        epochs: Total number of epochs, those already done included.
        loop: Precision, layout, minibatches per step.
        after_epoch: Called with the run after each epoch, to save or report it.
        stop: Asked after that whether to go no further, such as :class:`~transferkit.finetune.StopEarly`. Of
            several processes, all must answer alike.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        ``run.history``.
    """
    stepper = Stepper(run, loop)
    while run.epoch < epochs:
        train_epoch(run, sampler, loop=loop, stepper=stepper, progress=progress)
        loop = replace(loop, profile=None)
        if after_epoch is not None:
            after_epoch(run)
        if stop is not None and stop(run):
            break
    return run.history


def train_epoch(
    run: Run,
    sampler: MultiscaleSampler,
    *,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    stepper: Stepper | None = None,
    progress: Progress = False,
) -> EpochRecord:
    """Train ``run.model`` on one epoch of ``sampler``'s patches.

    Nothing is read back from the device before the epoch ends, so the device never waits for the loop.

    Args:
        run: Changed in place: model, optimizer, schedule, epoch, history, sampler state.
        sampler: In training mode; its epoch is set to ``run.epoch``.
        loop: Precision, layout, minibatches per step.
        stepper: Of ``run`` and ``loop``, where one serves several epochs.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        The epoch's record, also appended to ``run.history``.

    Raises:
        DivergedError: The loss became infinite or NaN. The run on disk is that of the last good epoch.
    """
    started = time.perf_counter()
    learning_rate = run.optimizer.param_groups[0]["lr"]
    stepper = Stepper(run, loop) if stepper is None else stepper
    distributed.spread_randomness(run.device)
    run.model.train()
    sampler.set_epoch(run.epoch)
    batches = track(sampler, progress, description=f"epoch {run.epoch + 1}", unit="batch")

    totals = distributed.sum_over_ranks(train_on(stepper, batches, loop))
    distributed.average_statistics(run.model)
    loss, right, patches = totals.tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} in epoch {run.epoch + 1} at learning rate {learning_rate:g}; "
            "lower the learning rate and resume from the last saved epoch"
        )
    if not isinstance(run.schedule, PerStep):
        run.schedule.step()
    run.epoch += 1
    run.sampler_state = sampler.state_dict()
    record = EpochRecord(
        epoch=run.epoch,
        loss=loss / max(patches, 1),
        accuracy=right / max(patches, 1),
        patches=int(patches),
        learning_rate=learning_rate,
        seconds=time.perf_counter() - started,
    )
    run.history.append(record)
    return record


def train_on(stepper: Stepper, batches: Iterable[PatchBatch], loop: LoopSettings) -> Tensor:
    """Train on minibatches, and read nothing back from the device.

    Returns:
        The patches' summed loss, how many were right, and how many counted, (3,) float64.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=stepper.run.device)
    with profiled(loop.profile) as end_of_step:
        for minibatches in waited_for(steps(batches, loop.accumulate)):
            totals += stepper.step(minibatches)
            end_of_step()
    return totals


def steps(batches: Iterable[PatchBatch], accumulate: int) -> Iterator[list[PatchBatch]]:
    """Yield the minibatches of each step; the last one may have fewer.

    Example:
        >>> list(steps("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    source = iter(batches)
    while step := list(islice(source, accumulate)):
        yield step
