"""A demonstration on handwritten digits: its recipe, its scenes, and its pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from transferkit.datasets import demo_source_digits, write_demo_devkit
from transferkit.devices import choose_device
from transferkit.distributed import first_on_machine
from transferkit.files import write_atomically
from transferkit.finetune.networks import small_alexnet
from transferkit.finetune.protocol import Optimization
from transferkit.finetune.recipes import NEON2016
from transferkit.preprocessing import IMAGENET, Preprocessing
from transferkit.progress import Progress, track

_STEPS = Optimization(3e-3, momentum=0.9, weight_decay=5e-4, steps=(3,), factors=(0.1,))
DEMO = replace(
    NEON2016,
    name="demo",
    patch_size=32,
    patches_per_image=64,
    hidden=(128,),
    hidden_std=0.05,
    head_std=0.05,
    pretrained=_STEPS,
    scratch=_STEPS,
    epochs=4,
)
"""``NEON2016`` for images of a hundred pixels: small patches, a small head, and few epochs."""


def prepare_demo(
    folder: Path,
    *,
    seed: int = 13,
    device: torch.device | str | None = None,
    progress: Progress = False,
    log: Callable[[str], object] | None = None,
) -> Path:
    """Write scenes with digits in them, and weights pretrained on single digits.

    Of several processes, the first on each machine writes them.

    Args:
        folder: The scenes are written to ``data`` in it, in the layout of a VOCdevkit, and the weights of
            :func:`small_alexnet` to ``single_digits.pt``.
        seed: Seed of all random choices.
        device: Device that trains on single digits.
        progress: See :func:`transferkit.progress.track`.
        log: Called with a line that tells the loss on single digits.

    Returns:
        The file of the weights.
    """
    weights = folder / "single_digits.pt"
    with first_on_machine() as first:
        if first:
            write_demo_devkit(folder / "data", seed=seed, progress=progress)
            torch.manual_seed(seed)
            source = small_alexnet(10).to(choose_device(device))
            loss = train_on_digits(source, IMAGENET, seed=seed, progress=progress)
            write_atomically(weights, lambda file: torch.save(source.state_dict(), file))
            if log is not None:
                log(f"single digits: loss {loss:.3f}")
    return weights


def train_on_digits(
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    epochs: int = 8,
    batch_size: int = 32,
    seed: int = 13,
    progress: Progress = False,
) -> float:
    """Train a network to classify single digits: the source task of the demonstration.

    Args:
        model: Maps normalized images (B, 3, 32, 32) to logits (B, 10); trained in place, on its device.
        preprocessing: Preprocessing that the model expects.
        epochs: Number of epochs.
        batch_size: B, digits per minibatch.
        seed: Seed of the digits; their order is drawn from torch's global generator, as dropout is.
        progress: See :func:`transferkit.progress.track`.

    Returns:
        The loss of the last minibatch, nats.
    """
    device = next(model.parameters()).device
    images, labels = (values.to(device) for values in demo_source_digits(seed=seed))  # (N, 3, 32, 32), (N,)
    batches = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.5e-3, total_steps=epochs * batches, pct_start=0.2
    )
    loss = torch.zeros(())
    for _ in track(range(epochs), progress, description="single digits", unit="epoch"):
        order = torch.randperm(len(images))
        for chosen in order[: batches * batch_size].view(batches, batch_size):
            loss = nn.functional.cross_entropy(model(preprocessing(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return loss.item()
