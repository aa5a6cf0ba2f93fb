"""The training loop: one epoch, and as many as are asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from transferkit.errors import DivergedError
from transferkit.finetune.run import EpochRecord, Run
from transferkit.labeling import IGNORE
from transferkit.precision import mixed_precision
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler


def train_epoch(
    run: Run, sampler: MultiscaleSampler, *, amp: bool | None = None, progress: Progress = False
) -> EpochRecord:
    """Train ``run.model`` on one epoch of ``sampler``'s patches.

    Nothing is read back from the device before the epoch ends, so the device never waits for the loop.

    Args:
        run: Changed in place: model, optimizer, schedule, epoch, history, sampler state.
        sampler: In training mode; its epoch is set to ``run.epoch``.
        amp: Mixed precision; ``None`` for on with cuda and off elsewhere.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        The epoch's record, also appended to ``run.history``.

    Raises:
        DivergedError: The loss became infinite or NaN. The run on disk is that of the last good epoch.
    """
    started = time.perf_counter()
    device = run.device
    scaler = _gradient_scaler(device, amp)
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, patches right, patches
    learning_rate = run.optimizer.param_groups[0]["lr"]

    run.model.train()
    sampler.set_epoch(run.epoch)
    for batch in track(sampler, progress, description=f"epoch {run.epoch + 1}", unit="batch"):
        totals += _train_on(run, batch.pixels.to(device), batch.labels.to(device), scaler, amp)

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


def _train_on(
    run: Run, pixels: Tensor, labels: Tensor, scaler: torch.amp.GradScaler, amp: bool | None
) -> Tensor:
    """Take one step; return the patches' summed loss, how many were right, and how many counted, (3,) float64."""
    counted = labels != IGNORE
    with mixed_precision(pixels.device, amp):
        logits: Tensor = run.model(run.preprocessing(pixels))
    losses = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    # Not reduction="mean", which is NaN for a minibatch of ignored patches only.
    scaled = scaler.scale(losses / counted.sum().clamp(min=1))
    run.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaled)
    scaler.step(run.optimizer)
    scaler.update()
    right = (logits.detach().argmax(dim=1) == labels) & counted
    return torch.stack([losses.detach().double(), right.sum().double(), counted.sum().double()])


def _gradient_scaler(device: torch.device, amp: bool | None) -> torch.amp.GradScaler:
    """Return the scaler that float16 needs; for bfloat16 and float32 it passes gradients through."""
    float16 = device.type == "cuda" and amp is not False and not torch.cuda.is_bf16_supported()
    return torch.amp.GradScaler(device.type, enabled=float16)


def fit(
    run: Run,
    sampler: MultiscaleSampler,
    epochs: int,
    *,
    amp: bool | None = None,
    after_epoch: Callable[[Run], object] | None = None,
    progress: Progress = False,
) -> list[EpochRecord]:
    """Train until ``run.epoch`` is ``epochs``.

    Args:
        run: Where to start; a restored run goes on where it was.
        sampler: In training mode.
        epochs: Total number of epochs, those already done included.
        amp: As in :func:`train_epoch`.
        after_epoch: Called with the run after each epoch, to save or report it.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        ``run.history``.
    """
    while run.epoch < epochs:
        train_epoch(run, sampler, amp=amp, progress=progress)
        if after_epoch is not None:
            after_epoch(run)
    return run.history
