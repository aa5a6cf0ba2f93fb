"""The training loop: one epoch, and as many as are asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from transferkit.errors import DivergedError
from transferkit.finetune import distributed
from transferkit.finetune.loop_settings import LoopSettings
from transferkit.finetune.profiling import profiled, waited_for
from transferkit.finetune.run import EpochRecord, Run
from transferkit.labeling import IGNORE
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler, PatchBatch


def fit(
    run: Run,
    sampler: MultiscaleSampler,
    epochs: int,
    *,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    after_epoch: Callable[[Run], object] | None = None,
    progress: Progress = False,
) -> list[EpochRecord]:
    """Train until ``run.epoch`` is ``epochs``.

    Args:
        run: Where to start; a restored run goes on where it was.
        sampler: In training mode.
        epochs: Total number of epochs, those already done included.
        loop: Precision, layout, minibatches per step.
        after_epoch: Called with the run after each epoch, to save or report it.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        ``run.history``.
    """
    network = prepare(run, loop)
    while run.epoch < epochs:
        train_epoch(run, sampler, loop=loop, network=network, progress=progress)
        loop = replace(loop, profile=None)
        if after_epoch is not None:
            after_epoch(run)
    return run.history


def prepare(run: Run, loop: LoopSettings) -> nn.Module:
    """Return what is called in the place of ``run.model``: the same weights, laid out, shared and compiled."""
    loop.lay_out_weights(run.model)
    return loop.compiled(distributed.parallel(run.model, run.device))


def train_epoch(
    run: Run,
    sampler: MultiscaleSampler,
    *,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    network: nn.Module | None = None,
    progress: Progress = False,
) -> EpochRecord:
    """Train ``run.model`` on one epoch of ``sampler``'s patches.

    Nothing is read back from the device before the epoch ends, so the device never waits for the loop.

    Args:
        run: Changed in place: model, optimizer, schedule, epoch, history, sampler state.
        sampler: In training mode; its epoch is set to ``run.epoch``.
        loop: Precision, layout, minibatches per step.
        network: What :func:`prepare` returned, where that is done once for several epochs.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        The epoch's record, also appended to ``run.history``.

    Raises:
        DivergedError: The loss became infinite or NaN. The run on disk is that of the last good epoch.
    """
    started = time.perf_counter()
    learning_rate = run.optimizer.param_groups[0]["lr"]
    network = prepare(run, loop) if network is None else network
    distributed.spread_randomness(run.device)
    run.model.train()
    sampler.set_epoch(run.epoch)
    batches = track(sampler, progress, description=f"epoch {run.epoch + 1}", unit="batch")

    totals = distributed.sum_over_ranks(train_on(run, network, batches, loop))
    distributed.average_statistics(run.model)
    loss, right, patches = totals.tolist()
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss became {loss} in epoch {run.epoch + 1} at learning rate {learning_rate:g}; "
            "lower the learning rate and resume from the last saved epoch"
        )
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


def train_on(run: Run, network: nn.Module, batches: Iterable[PatchBatch], loop: LoopSettings) -> Tensor:
    """Train on minibatches, and read nothing back from the device.

    Returns:
        The patches' summed loss, how many were right, and how many counted, (3,) float64.
    """
    scaler = loop.gradient_scaler(run.device)
    totals = torch.zeros(3, dtype=torch.float64, device=run.device)
    with profiled(loop.profile) as end_of_step:
        for minibatches in waited_for(steps(batches, loop.accumulate)):
            totals += take_step(run, network, minibatches, scaler, loop)
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


def take_step(
    run: Run,
    network: nn.Module,
    minibatches: Sequence[PatchBatch],
    scaler: torch.amp.GradScaler,
    loop: LoopSettings,
) -> Tensor:
    """Step along the gradient of the mean loss over all patches that count, of all minibatches on all ranks.

    Returns:
        This rank's summed loss, how many patches were right, and how many counted, (3,) float64.
    """
    mine = torch.stack([(batch.labels != IGNORE).sum() for batch in minibatches]).sum()
    counted = distributed.sum_over_ranks(mine.to(run.device)).clamp(
        min=1
    )  # all may be ignored, and 0 / 0 is NaN
    divisor = counted / distributed.world_size()  # the mean over ranks is the exchange's own division
    totals = torch.zeros(3, dtype=torch.float64, device=run.device)
    run.optimizer.zero_grad(set_to_none=True)
    for place, batch in enumerate(minibatches):
        last = place == len(minibatches) - 1
        with nullcontext() if last else distributed.without_exchange(network):
            totals += _add_gradient(run, network, batch, divisor, scaler, loop)
    with record_function("optimizer"):
        scaler.step(run.optimizer)
        scaler.update()
    return totals


def _add_gradient(
    run: Run,
    network: nn.Module,
    batch: PatchBatch,
    divisor: Tensor,
    scaler: torch.amp.GradScaler,
    loop: LoopSettings,
) -> Tensor:
    """Add the gradient of a minibatch's summed loss over ``divisor``; return what :func:`take_step` sums up."""
    # A filler, known by its image index on the cpu, keeps step with other ranks: it has no say in any statistics.
    filler = bool((batch.image_index < 0).all())
    pixels, labels = (tensor.to(run.device, non_blocking=True) for tensor in (batch.pixels, batch.labels))
    with record_function("forward"), _evaluation(run.model) if filler else nullcontext():
        with loop.mixed_precision(run.device):
            logits: Tensor = network(loop.lay_out(run.preprocessing(pixels)))
        losses = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    with record_function("backward"):
        torch.autograd.backward(scaler.scale(losses / divisor))
    counted = labels != IGNORE
    right = (logits.detach().argmax(dim=1) == labels) & counted
    return torch.stack([losses.detach().double(), right.sum().double(), counted.sum().double()])


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in training into evaluation mode for a while."""
    model.eval()
    yield
    model.train()
