"""A tiny network, and a stream of patches that is a pure function of the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from transferkit.finetune import Optimization, Run, build_optimizer, build_schedule
from transferkit.preprocessing import Preprocessing

IDENTITY = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
SETTINGS = Optimization(0.1, momentum=0.9, weight_decay=1e-3, steps=(2,), factors=(0.1,))


@dataclass
class Batch:
    pixels: torch.Tensor
    labels: torch.Tensor
    image_index: torch.Tensor


class Stream:
    """Stands in for a sampler: five batches of sixteen colored patches an epoch, labeled by brightest channel."""

    def __init__(self, scale: float = 1.0) -> None:
        self.epoch = 0
        self.scale = scale

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.epoch)
        for _ in range(5):
            labels = torch.randint(3, (16,), generator=generator)
            pixels = torch.rand(16, 3, 4, 4, generator=generator) * 128
            pixels[torch.arange(16), labels] += 127
            yield Batch(pixels * self.scale, labels, torch.zeros(16, dtype=torch.int64))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}


def tiny_model(hidden: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, hidden),
        nn.ReLU(), nn.Linear(hidden, 3),
    )  # fmt: skip


def tiny_run(hidden: int = 16, seed: int = 0, frozen: tuple[str, ...] = ()) -> Run:
    torch.manual_seed(seed)
    model = tiny_model(hidden)
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    optimizer = build_optimizer(model.parameters(), SETTINGS)
    return Run(model, optimizer, build_schedule(optimizer, SETTINGS), IDENTITY, frozen=frozen)
