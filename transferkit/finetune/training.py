"""The training loop: all epochs, one epoch, one optimizer step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.profiler import record_function

from transferkit import distributed
from transferkit.backbones import logits_of
from transferkit.distributed import is_first
from transferkit.errors import ArgumentError, DivergedError
from transferkit.features._photos import digest_of_tensor
from transferkit.files import faults_named, write_text
from transferkit.finetune import _restoring as restoring
from transferkit.finetune._starts import require_same_start
from transferkit.finetune.optimizer import PerStep
from transferkit.finetune.run import EpochRecord, Run, Unfinished
from transferkit.finetune.settings import LoopSettings
from transferkit.heads import ImageLoss
from transferkit.labeling import IGNORE
from transferkit.optimization import lone_row
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler, PatchBatch
from transferkit.stopping import asked_to_stop, end_now, ended_between_steps


def fit(
    run: Run,
    sampler: MultiscaleSampler,
    epochs: int,
    *,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    image_targets: Tensor | None = None,
    after_epoch: Callable[[Run], object] | None = None,
    stop: Callable[[Run], bool] | None = None,
    progress: Progress = False,
) -> list[EpochRecord]:
    """Train until ``run.epoch`` is ``epochs``, or ``stop`` ends it earlier.

    Args:
        run: The run to train; a restored run continues where it was saved.
        sampler: Sampler in training mode.
        epochs: Total number of epochs, including those already done.
        loop: Precision, memory layout, minibatches per optimizer step.
        image_targets: (N, K) for images of which only the classes are known, not where they are: 1 for a class that
            the image shows, 0 for others, NaN throughout for an image with boxes; ``None`` if all have boxes. Such
            images train by ``run.image_loss`` alone.
        after_epoch: Called with the run after each epoch, for example to save or report it.
        stop: Called with the run after ``after_epoch``; training ends when it returns ``True``. An example is
            :class:`~transferkit.finetune.StopEarly`. Of several ranks any can end it.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        ``run.history``.

    Raises:
        ArgumentError: Ranks begin with other data, settings, weights or epochs; on all of them, naming what differs.
            Or the model is sharded among the ranks; or ``run.image_loss`` needs whole images, and there are more
            ranks than images in a minibatch.
        Stopped: After :func:`~transferkit.finetune.stop_on_sigterm`, SIGTERM came; the run can be saved as it is.
    """
    facts = {"epoch": run.epoch, "epochs": epochs, **_facts(run, image_targets)}
    require_same_start("training", run.model, sampler, loop, facts)
    stepper = Stepper(run, loop, image_targets)
    if has_stopped(run, stop):
        return run.history
    with ended_between_steps():
        while run.epoch < epochs:
            train_epoch(run, sampler, loop=loop, stepper=stepper, progress=progress)
            loop = replace(loop, profile=None)
            if after_epoch is not None:
                after_epoch(run)
            if asked_to_stop(run.device):
                end_now()
            if stop is not None and distributed.any_rank(stop(run)):
                break
    return run.history


def _facts(run: Run, image_targets: Tensor | None) -> dict[str, object]:
    """Return what a run begins with beside its weights."""
    groups = [{**group, "params": len(group["params"])} for group in run.optimizer.param_groups]
    return {
        "optimizer": f"{type(run.optimizer).__name__} {groups}",
        "objective": restoring.described(run.objective),
        "image loss": restoring.described(run.image_loss),
        "image targets": None if image_targets is None else digest_of_tensor(image_targets),
    }


def has_stopped(run: Run, stop: Callable[[Run], bool] | None) -> bool:
    """Tell whether a rule that remembers, such as ``StopEarly``, had ended the run before it was resumed."""
    catch_up = getattr(stop, "catch_up", None)
    return catch_up is not None and distributed.any_rank(catch_up(run))


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
        sampler: Sampler in training mode; its epoch is set to ``run.epoch``.
        loop: Precision, memory layout, minibatches per optimizer step.
        stepper: Used by :func:`fit` to keep one compiled network for all epochs; by default made from ``run``.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        The epoch's record, which is also appended to ``run.history``.

    Raises:
        DivergedError: The loss became infinite or NaN. A saved run still holds the last good epoch.
        ArgumentError: As for :func:`fit`.
        Stopped: See :func:`fit`.
    """
    started = time.perf_counter()
    _require_whole_images(run, sampler)
    learning_rate = run.optimizer.param_groups[0]["lr"]
    stepper = Stepper(run, loop) if stepper is None else stepper
    stepper.seen = 0
    run.model.train()
    sampler.set_epoch(run.epoch)
    earlier = _taken_up(run, sampler)
    batches = track(sampler, progress, description=f"epoch {run.epoch + 1}", unit="batch")

    within: dict[str, Any] = {}

    def stopped() -> bool:
        state = sampler.state_dict() if asked_to_stop(run.device) else {}
        if state.get("batch"):  # else the epoch is through, or the sampler cannot say how far it is
            within.update(state)
        return bool(within)

    totals = distributed.sum_over_ranks(train_on(stepper, batches, loop, stopped)) + earlier
    distributed.average_statistics(run.model, stepper.seen)
    if within:
        random = distributed.gather_objects(restoring.random_state(run.device))
        run.sampler_state, run.unfinished = within, Unfinished(totals.tolist(), random)
        end_now()
    if run.average is not None and distributed.world_size() > 1:
        run.average.copy_buffers()
    if hasattr(sampler, "gather_bad_images"):
        sampler.gather_bad_images()
    loss, right, patches, image_loss, images = totals.tolist()
    if not math.isfinite(loss + image_loss):
        raise DivergedError(
            f"the loss became {loss + image_loss} in epoch {run.epoch + 1} at learning rate {learning_rate:g}; "
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
        image_loss=None if run.image_loss is None else image_loss / max(images, 1),
    )
    run.history.append(record)
    return record


def _require_whole_images(run: Run, sampler: Any) -> None:
    """Refuse more ranks than images in a minibatch where the loss of images needs all patches of each."""
    ranks, images = distributed.world_size(), getattr(sampler, "mix_images", math.inf)
    if run.image_loss is not None and ranks > images:
        raise ArgumentError(
            f"the loss of images needs all patches of a photo in one process, and {ranks} share minibatches of "
            f"{images} photos; start {images} processes at most, or make the step larger: "
            f"replace(protocol, mix_images={ranks}, batch_size={ranks} * protocol.patches_per_image)"
        )


def _taken_up(run: Run, sampler: MultiscaleSampler) -> Tensor:
    """Go on with an epoch that was stopped, where the sampler does, or begin it; return the totals so far, (5,)."""
    unfinished, run.unfinished = run.unfinished, None
    if unfinished is None or _place(sampler.state_dict()) != _place(run.sampler_state or {}):
        distributed.seed_ranks_differently(run.device)
        return torch.zeros(5, dtype=torch.float64, device=run.device)
    restoring.set_random_state(unfinished.random[distributed.place_among_ranks()[0]], run.device)
    return torch.tensor(unfinished.totals, dtype=torch.float64, device=run.device)


def _place(state: Mapping[str, Any]) -> tuple[object, object]:
    return state.get("epoch"), state.get("batch")


def train_on(
    stepper: Stepper,
    batches: Iterable[PatchBatch],
    loop: LoopSettings,
    stopped: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Train on minibatches until ``stopped`` after a step; return (5,) float64: see :meth:`Stepper.step`."""
    totals = torch.zeros(5, dtype=torch.float64, device=stepper.run.device)
    with profiled(loop.profile) as end_of_step:
        for minibatches in waited_for(steps(batches, loop.accumulate)):
            totals += stepper.step(minibatches)
            end_of_step()
            if stopped():
                break
    return totals


def steps(batches: Iterable[PatchBatch], accumulate: int) -> Iterator[list[PatchBatch]]:
    """Yield the minibatches of each optimizer step; the last step may have fewer."""
    source = iter(batches)
    while step := list(islice(source, accumulate)):
        yield step


class Stepper:
    """Takes optimizer steps of a run without reading anything back from the device."""

    # A step follows the gradient of the mean loss over all patches that count, of all its minibatches on all ranks:
    # up to rounding the same step as on one large minibatch. The loss of images is the mean over all their images; an
    # image whose patches are spread over several minibatches counts as one image in each of them.

    def __init__(self, run: Run, loop: LoopSettings, image_targets: Tensor | None = None) -> None:
        if distributed.is_sharded(run.model):
            raise ArgumentError(
                "run.model is sharded among the ranks, and fit trains whole ones; give it the model as it was, or "
                "train the sharded one in a loop of your own, which docs/how-to/many-devices.md has: the sampler and "
                "score_images serve it"
            )
        loop.lay_out_weights(run.model)
        self.seen = 0  # patches on this rank, fillers' left out
        self.run, self.loop, self._image_targets = run, loop, image_targets
        self._shared = distributed.parallel(run.model, run.device)
        self._network = loop.compiled(self._shared)
        self._scaler = loop.gradient_scaler(run.device)

    def step(self, minibatches: Sequence[PatchBatch]) -> Tensor:
        """Take one step; return (5,) float64 of this rank.

        They are the patches' summed loss, right patches and counted patches, the images' summed loss, and images.
        """
        # All ranks must give the same number of minibatches.
        minibatches = [self._counting(batch) for batch in minibatches]
        device, optimizer = self.run.device, self.run.optimizer
        patches = torch.stack([self.run.objective.counted(batch.labels).sum() for batch in minibatches]).sum()
        # Filled on the device: copying a number there would wait for all work queued on it.
        own = sum(map(_count_images, minibatches))
        images = torch.full_like(patches, own, device=device)
        here = torch.stack([patches.to(device, non_blocking=True), images])
        counted = distributed.sum_over_ranks(here)
        totals = torch.zeros(5, dtype=torch.float64, device=device)
        if not own and not counted[1]:  # fillers on all ranks, for photos that one process would pass over
            return totals
        # DistributedDataParallel averages gradients over ranks, which divides by their number once more. At least 1:
        # where all patches are ignored, 0 / 0 would be NaN.
        divisors = counted.clamp(min=1) / distributed.world_size()
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

    def _counting(self, batch: PatchBatch) -> PatchBatch:
        """Return a minibatch without labels for patches of images of which only the classes are known."""
        targets = self._targets_of(batch.image_index)
        if targets is None or not len(targets):
            return batch
        unknown = ~targets.isnan().any(dim=1) & (batch.image_index >= 0)
        return replace(batch, labels=batch.labels.masked_fill(unknown.to(batch.labels.device), IGNORE))

    def _targets_of(self, images: Tensor) -> Tensor | None:
        return None if self._image_targets is None else self._image_targets[images]

    def _add_gradient(self, batch: PatchBatch, divisors: Tensor) -> Tensor:
        """Add a minibatch's gradient, its summed losses of patches and images divided by ``divisors`` (2,)."""
        run, loop = self.run, self.loop
        pixels, labels = (tensor.to(run.device, non_blocking=True) for tensor in (batch.pixels, batch.labels))
        # A filler is a minibatch of ignored patches (image_index -1) for a rank that has none where others have. It
        # goes through the network in training mode like theirs: DistributedDataParallel, and every layer that
        # communicates, waits for all ranks. image_index lies on the CPU, so reading it does not wait for the device.
        filler = bool((batch.image_index < 0).all())
        self.seen += 0 if filler else len(labels)
        with distributed.buffers_kept(run.model) if filler else nullcontext():
            with record_function("forward"), loop.mixed_precision(run.device):
                inputs = loop.lay_out(run.preprocessing(pixels))
                with lone_row(distributed.unwrapped(run.model), inputs):
                    logits = logits_of(self._network(inputs)).float()
                losses = run.objective.losses(logits, labels).sum()
                loss = losses / divisors[0]
                of_images = torch.zeros_like(losses)
                if run.image_loss is not None and not filler:
                    of_images = self._image_losses(
                        run.image_loss, run.objective.log_probs(logits), labels, batch
                    )
                    loss = loss + run.image_loss.weight * of_images / divisors[1]
            with record_function("backward"):
                torch.autograd.backward(self._scaler.scale(loss))
        counted, right = run.objective.counted(labels), run.objective.right(logits.detach(), labels)
        images = torch.full_like(losses, _count_images(batch))
        sums = (losses, right.sum(), counted.sum(), of_images, images)
        return torch.stack([one.detach().double() for one in sums])

    def _image_losses(self, loss: ImageLoss, log_probs: Tensor, labels: Tensor, batch: PatchBatch) -> Tensor:
        """Return the summed loss of a minibatch's images."""
        which, images = torch.unique(batch.image_index, return_inverse=True)
        images, targets = images.to(labels.device, non_blocking=True), self._targets_of(which)
        if targets is not None:
            targets = targets.to(labels.device, non_blocking=True)
        return loss.losses(log_probs, labels, images, len(which), targets).sum()


def _count_images(batch: PatchBatch) -> int:
    """Return the number of images in a minibatch; a filler has none."""
    return len({*batch.image_index.tolist()} - {-1})


# A profile of the first steps: a table of the time by phase and operator, and a trace.


WARM_UP, STEPS = 2, 10
PHASES = ("wait for patches", "forward", "backward", "optimizer")

Item = TypeVar("Item")


def waited_for(items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``; the wait for each appears in a profile."""
    source = iter(items)
    while True:
        with record_function(PHASES[0]):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item


@contextmanager
def profiled(folder: Path | None) -> Iterator[Callable[[], object]]:
    """Profile steps 3 to 12 of a block on rank 0 if ``folder`` is given; yield a function to call after each step."""
    if folder is None or not is_first():
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder, f"an epoch of fewer than {WARM_UP + 1} steps is too short to profile\n")
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1),
        on_trace_ready=partial(_write, folder),
        acc_events=True,
    ) as profiler:
        yield profiler.step


def _write(folder: Path, profiler: torch.profiler.profile) -> None:
    _write_table(folder, table(profiler.key_averages()))
    with faults_named(folder / "trace.json.gz"):
        profiler.export_chrome_trace(str(folder / "trace.json.gz"))


def _write_table(folder: Path, text: str) -> None:
    write_text(folder / "profile.txt", text)


def table(averages: Iterable[Any], operators: int = 12) -> str:
    """Return the time by phase and by operator from ``torch.profiler.profile.key_averages()``."""
    every = list(averages)
    taken = [event for event in every if event.key.startswith("ProfilerStep")]
    steps = max(1, sum(event.count for event in every if event.key == PHASES[-1]))
    wall = max(1.0, sum(event.cpu_time_total for event in taken))  # microseconds
    phases = {event.key: event.cpu_time_total for event in every if event.key in PHASES}
    on_device = sum(event.self_device_time_total for event in every if event.key not in PHASES)
    own = {
        event.key: (event.self_device_time_total if on_device else event.self_cpu_time_total, event.count)
        for event in every
        if event not in taken and event.key not in PHASES
    }
    heaviest = sorted(own, key=own.__getitem__, reverse=True)[:operators]
    lines = [f"{steps} steps of {wall / steps / 1e3:.1f} ms each"]
    if on_device:
        lines.append(
            f"the device was busy for {on_device / wall:.0%} of the time; operators by their time on it"
        )
    lines += ["", f"{'phase':<42}{'ms per step':>14}{'share':>8}"]
    lines += [_line(name, phases[name], steps, wall) for name in PHASES if name in phases]
    lines += [_line("all else", wall - sum(phases.values()), steps, wall)]
    lines += ["", f"{'operator':<42}{'ms per step':>14}{'share':>8}{'calls per step':>17}"]
    lines += [_line(name, own[name][0], steps, wall) + f"{own[name][1] / steps:>17.1f}" for name in heaviest]
    return "\n".join(lines) + "\n"


def _line(name: str, microseconds: float, steps: int, wall: float) -> str:
    return f"{name[:41]:<42}{microseconds / steps / 1e3:>14.2f}{microseconds / wall:>8.1%}"
