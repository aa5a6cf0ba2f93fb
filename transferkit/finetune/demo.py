"""What a demonstration on handwritten digits needs: a recipe for small pictures, and the source task."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from transferkit.datasets import demo_source_digits
from transferkit.finetune.protocol import Optimization
from transferkit.finetune.recipes import NEON2016
from transferkit.preprocessing import Preprocessing
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
"""The neon recipe for pictures of a hundred pixels: small patches, a small head, and few epochs."""


def train_on_digits(
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    epochs: int = 8,
    batch_size: int = 32,
    seed: int = 13,
    progress: Progress = False,
) -> float:
    """Train a network to tell single digits apart: the source task, whose layers then serve to find them in scenes.

    Args:
        model: Maps normalized pictures (B, 3, 32, 32) to logits (B, 10); trained in place, on its device.
        preprocessing: What it wants done to pixels.
        epochs: How often each digit is seen.
        batch_size: B.
        seed: Of the digits; their order is drawn from torch's global generator, as dropout is.
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
