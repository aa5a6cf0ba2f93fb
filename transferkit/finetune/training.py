"""The training loop: one epoch, and as many as are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from transferkit.errors import DivergedError
from transferkit.finetune.run import EpochRecord, Run
from transferkit.labeling import IGNORE
from transferkit.progress import Progress, track
from transferkit.sampler import MultiscaleSampler


def mixed_precision(device: torch.device, enabled: bool | None = None) -> AbstractContextManager[None]:
    """Return the autocast context for a device: on by default on cuda (bfloat16 where it has it), else off."""
    if enabled is None:
        enabled = device.type == "cuda"
    half = torch.bfloat16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        half = torch.float16
    return torch.autocast(device.type, dtype=half, enabled=enabled)


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
    device = next(run.model.parameters()).device
    # float16 needs its gradients scaled; for bfloat16 and float32 the scaler passes them through.
    needs_scaling = device.type == "cuda" and amp is not False and not torch.cuda.is_bf16_supported()
    scaler = torch.amp.GradScaler(device.type, enabled=needs_scaling)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    counted = torch.zeros((), dtype=torch.int64, device=device)
    learning_rate = run.optimizer.param_groups[0]["lr"]

    run.model.train()
    sampler.set_epoch(run.epoch)
    for batch in track(sampler, progress, description=f"epoch {run.epoch + 1}", unit="batch"):
        labels = batch.labels.to(device, non_blocking=True)
        with mixed_precision(device, amp):
            logits: Tensor = run.model(run.preprocessing(batch.pixels.to(device, non_blocking=True)))
            loss = nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE)
        run.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(run.optimizer)
        scaler.update()
        used = labels != IGNORE
        counted += used.sum()
        loss_sum += loss.detach().double() * used.sum()
        correct += ((logits.detach().argmax(dim=1) == labels) & used).sum()

    patches = int(counted)
    mean_loss = float(loss_sum) / max(patches, 1)
    if not torch.isfinite(loss_sum):
        raise DivergedError(
            f"the loss became {mean_loss} in epoch {run.epoch + 1} at learning rate {learning_rate:g}; "
            "lower the learning rate and resume from the last saved epoch"
        )
    run.schedule.step()
    run.epoch += 1
    run.sampler_state = sampler.state_dict()
    record = EpochRecord(
        epoch=run.epoch,
        loss=mean_loss,
        accuracy=int(correct) / max(patches, 1),
        patches=patches,
        learning_rate=learning_rate,
        seconds=time.perf_counter() - started,
    )
    run.history.append(record)
    return record


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
