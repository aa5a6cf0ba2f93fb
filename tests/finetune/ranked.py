"""What the ranks of ``test_distributed.py`` do: run by torchrun or in one process, each leaves what it found."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tests.finetune.tiny import IDENTITY, SETTINGS, Batch, tiny_model, tiny_run
from transferkit.finetune import (
    LoopSettings,
    Run,
    build_optimizer,
    build_schedule,
    fill_scorer,
    fit,
    is_first,
    process_group,
    read_run,
)
from transferkit.scorer import ImageScorer

IGNORE = -100
PATCHES, IMAGES = 96, 7


def patches() -> tuple[Tensor, Tensor]:
    """Colored patches, labeled by their brightest channel; every fifth is ignored, and so is the third eighth."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (PATCHES,), generator=generator)
    pixels = torch.rand(PATCHES, 3, 4, 4, generator=generator) * 128
    pixels[torch.arange(PATCHES), labels] += 127
    labels[::5] = IGNORE
    labels[24:36] = IGNORE
    return pixels, labels


class Share:
    """A rank's minibatches of 8: of each 16 patches rank 0 has the first half, of the last 32 it has all.

    One process has the minibatches of both in turn.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks, self.epoch = rank, ranks, 0

    def __iter__(self) -> Iterator[Batch]:
        pixels, labels = patches()
        for start in range(0, PATCHES, 8):
            shared = start < PATCHES - 32
            owner = (start // 8) % 2 if shared else 0
            rows = slice(start, start + 8)
            if self.ranks == 1 or owner == self.rank:
                yield Batch(pixels[rows], labels[rows], torch.zeros(8, dtype=torch.int64))
            if not shared and (self.ranks == 1 or owner != self.rank):
                yield filler()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}


def filler() -> Batch:
    return Batch(torch.full((8, 3, 4, 4), 77.0), torch.full((8,), IGNORE), torch.full((8,), -1))


class Photos:
    """A rank's share of the test photos, as unequal as can be: photo by photo in turn, 5 to 11 patches each."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[Any]:
        for image in range(self.rank, IMAGES, self.ranks):
            generator = torch.Generator().manual_seed(image)
            pixels = torch.rand(5 + image, 3, 4, 4, generator=generator) * 255
            batch = Batch(pixels, torch.zeros(len(pixels)), torch.full((len(pixels),), image))
            batch.boxes = torch.rand(len(pixels), 4, generator=generator).cumsum(dim=1)
            yield batch


def plain_run() -> Run:
    """A network in which patches do not meet: no batch norm, no dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    optimizer = build_optimizer(model.parameters(), dataclasses.replace(SETTINGS, learning_rate=0.02))
    return Run(model, optimizer, build_schedule(optimizer, SETTINGS), IDENTITY)


def main(folder: Path) -> None:
    rank, ranks = (
        (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    )
    found: dict[str, Any] = {}

    # One process takes a step after as many minibatches as two together.
    for name, steps in (("each", 1), ("accumulated", 2)):
        run = plain_run()
        accumulate = steps * (2 if ranks == 1 else 1)
        for epochs in (1, 2):  # the second call shares the model anew
            fit(run, Share(rank, ranks), epochs=epochs, loop=LoopSettings(accumulate=accumulate))
        found[name] = run.model.state_dict()
        found[f"{name}, history"] = [dataclasses.asdict(record) for record in run.history]

    # Batch norm and dropout: the ranks end alike, and a stopped run ends as one that was not.
    run = tiny_run()
    fit(run, Share(rank, ranks), epochs=3)
    found["at once"] = run.model.state_dict()
    first = tiny_run()
    fit(first, Share(rank, ranks), epochs=1)
    if is_first():
        first.save(folder / "run.pt")
    if ranks > 1:
        distributed.barrier()
    second = tiny_run(seed=5)
    second.restore(read_run(folder / "run.pt"))
    if rank:
        torch.manual_seed(99)  # what dropout draws follows from the first rank alone
    fit(second, Share(rank, ranks), epochs=3)
    found["resumed"] = second.model.state_dict()

    torch.manual_seed(0)
    model = tiny_model()
    scorer = fill_scorer(model, Photos(rank, ranks), ImageScorer(IMAGES, 3), IDENTITY)
    found["scores"], found["counts"] = scorer.compute(), scorer.counts
    print(f"rank {rank} of {ranks} is through")
    torch.save(found, folder / f"{rank}_of_{ranks}.pt")


def gloo_threads() -> list[str]:
    """The names of this process's threads that serve a process group, where the system tells."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    with process_group(torch.device("cpu")):
        main(Path(sys.argv[1]))
    print(f"threads of the group that outlive it: {gloo_threads()}")
