"""The training loop: one step, one epoch, and as many as are asked for."""

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

from transferkit import distributed
from transferkit.backbones import logits_of
from transferkit.errors import DivergedError
from transferkit.finetune._profiling import profiled, waited_for
from transferkit.finetune.optimizer import PerStep
from transferkit.finetune.run import EpochRecord, Run
from transferkit.finetune.settings import LoopSettings
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler, PatchBatch


class Stepper:
    """Takes steps with a run's optimizer, and reads nothing back from the device.

    A step follows the gradient of the mean loss over all patches that count, of all its minibatches on all ranks: the
    same step, up to rounding, as on one minibatch of them all. A loss of images is the mean over all their images; of
    one whose patches are spread over several minibatches, each of these makes an image of its own.

    Args:
        run: Whose model is trained; its weights are laid out as the device wants them.
        loop: Precision and layout.
    """

    def __init__(self, run: Run, loop: LoopSettings) -> None:
        loop.lay_out_weights(run.model)
        self.run, self.loop = run, loop
        self._shared = distributed.parallel(run.model, run.device)
        self._network = loop.compiled(self._shared)
        self._scaler = loop.gradient_scaler(run.device)

    def step(self, minibatches: Sequence[PatchBatch]) -> Tensor:
        """Take one step.

        Args:
            minibatches: As many on every rank.

        Returns:
            Of this rank's patches, the summed loss, how many were right, and how many counted; (3,) float64.
        """
        device, optimizer = self.run.device, self.run.optimizer
        patches = torch.stack([self.run.objective.counted(batch.labels).sum() for batch in minibatches]).sum()
        # Filled on the device: to copy a number there would wait for all that it has to do.
        images = torch.full_like(patches, sum(map(_count_images, minibatches)), device=device)
        here = torch.stack([patches.to(device, non_blocking=True), images])
        # At least one: where all patches are ignored, 0 / 0 would be NaN.
        counted = distributed.sum_over_ranks(here).clamp(min=1)
        divisors = (
            counted / distributed.world_size()
        )  # the exchange of gradients divides by the number of ranks
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        optimizer.zero_grad(set_to_none=True)
        for batch in minibatches[:-1]:
            with distributed.no_sync(self._shared):
                totals += self._add_gradient(batch, divisors)
        totals += self._add_gradient(minibatches[-1], divisors)
        with record_function("optimizer"):
            self._scaler.step(optimizer)
            self._scaler.update()
        if isinstance(self.run.schedule, PerStep):
            self.run.schedule.step()
        return totals

    def _add_gradient(self, batch: PatchBatch, divisors: Tensor) -> Tensor:
        """Add the gradient of a minibatch's losses; return its part of what a step returns.

        Args:
            batch: The minibatch.
            divisors: (2,), of the summed losses of patches and of images.
        """
        run, loop = self.run, self.loop
        pixels, labels = (tensor.to(run.device, non_blocking=True) for tensor in (batch.pixels, batch.labels))
        # A filler, known by its image index on the cpu, keeps step with other ranks and has no say in statistics.
        filler = bool((batch.image_index < 0).all())
        with record_function("forward"), _evaluation(run.model) if filler else nullcontext():
            with loop.mixed_precision(run.device):
                logits = logits_of(self._network(loop.lay_out(run.preprocessing(pixels)))).float()
            losses = run.objective.losses(logits, labels).sum()
            loss = losses / divisors[0]
            if run.image_loss is not None:
                which, images = torch.unique(batch.image_index, return_inverse=True)
                images = images.to(run.device, non_blocking=True)
                of_images = run.image_loss.losses(run.objective.log_probs(logits), labels, images, len(which))
                loss = loss + run.image_loss.weight * of_images.sum() / divisors[1]
        with record_function("backward"):
            torch.autograd.backward(self._scaler.scale(loss))
        counted, right = run.objective.counted(labels), run.objective.right(logits.detach(), labels)
        return torch.stack([losses.detach().double(), right.sum().double(), counted.sum().double()])


def _count_images(batch: PatchBatch) -> int:
    """Return how many images a minibatch has patches of; a filler has none."""
    return len({*batch.image_index.tolist()} - {-1})


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in training into evaluation mode for a while."""
    model.eval()
    yield
    model.train()


# The training loop: one epoch, and as many as are asked for.


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
    distributed.seed_ranks_differently(run.device)
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
