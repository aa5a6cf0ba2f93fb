"""What the ranks of ``test_starts.py`` do: every start that must be refused, in one process group, and then a slow rank."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.features.scenes import GRID, SIDE, Scenes, features
from transferkit import distributed
from transferkit.errors import OutputError, TransferKitError
from transferkit.features import FeatureCache
from transferkit.finetune import (
    Optimization,
    Run,
    Stopped,
    build_optimizer,
    build_schedule,
    fit,
    process_group,
    score_images,
    stop_on_sigterm,
)
from transferkit.preprocessing import IMAGENET
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ImageScorer

PHOTOS, PATCHES = 12, 8


class Annotated(Scenes):
    """Scenes whose objects are told without decoding."""

    moved = 0.0

    def objects(self, index: int) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        item = self[index]
        return item.boxes + self.moved * (index == 3), item.classes, None, None


def sampler(count: int = PHOTOS, data: Any = None, **settings: Any) -> MultiscaleSampler:
    own = {"grid": GRID, "patch_size": SIDE, "patches_per_image": PATCHES, "batch_size": 4, "seed": 1}
    return MultiscaleSampler(data or Scenes(count), **{**own, **settings})


def run_of(seed: int = 0) -> Run:
    torch.manual_seed(seed)
    conv = [nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    model, settings = (
        nn.Sequential(*conv, nn.Linear(196, 3)),
        Optimization(1e-2, momentum=0.9, weight_decay=0.0),
    )
    optimizer = build_optimizer(model.parameters(), settings)
    return Run(model, optimizer, build_schedule(optimizer, settings), IMAGENET)


def cache_of(folder: Path, network: int = 0, count: int = PHOTOS) -> FeatureCache:
    return FeatureCache(folder, features(network), Scenes(count), grid=GRID, precision=torch.float32)


def refused(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except TransferKitError as error:
        return f"{type(error).__name__}: {error}"
    return "begun"


def scored(run: Run, patches: MultiscaleSampler) -> torch.Tensor:
    return score_images(run.model, patches, ImageScorer(PHOTOS, 3), IMAGENET)


def fails_on_the_last(rank: int, world: int) -> None:
    if rank == world - 1:
        raise OutputError("no room")


def starts(folder: Path, rank: int, world: int, early: MultiscaleSampler) -> dict[str, str]:
    """Begin what must be refused, on every rank with something of its own; return what each was told."""
    last = rank == world - 1
    behind, moved = run_of(), Annotated(PHOTOS)
    behind.epoch, moved.moved = int(last), float(last)
    tries: dict[str, Callable[[], object]] = {
        "alike": lambda: fit(run_of(), early, 1),
        "images": lambda: fit(run_of(), sampler(PHOTOS - last), 1),
        "objects of images": lambda: fit(run_of(), sampler(data=moved), 1),
        "seed": lambda: fit(run_of(), sampler(seed=rank), 1),
        "0.weight": lambda: fit(run_of(seed=rank), sampler(), 1),
        "epoch": lambda: fit(behind, sampler(), 3),
        "epochs": lambda: fit(run_of(), sampler(), 1 + rank),
        "work": lambda: scored(run_of(), sampler(mode="test")) if last else fit(run_of(), sampler(), 1),
        "leave out its rank": lambda: scored(run_of(), sampler(mode="test", rank=0, world_size=1)),
        "5.bias": lambda: scored(run_of(seed=rank), sampler(mode="test")),
        "patches_per_image": lambda: scored(run_of(), sampler(mode="test", patches_per_image=4 + rank)),
        "backbone": cache_of(folder / "nets", network=int(last)).fill,
        "ids": cache_of(folder / "data", count=PHOTOS - last).fill,
        "unshared folder": cache_of(folder / f"unshared {rank}").fill,
        "no room": lambda: distributed.on_all_ranks(lambda: fails_on_the_last(rank, world)),
    }
    return {name: refused(attempt) for name, attempt in tries.items()}


def stopped_and_resumed(folder: Path, rank: int, world: int) -> list[object]:
    """Send the last rank SIGTERM within the second epoch; return where each stopped, and whether all ends as it would."""
    whole = run_of()
    fit(whole, sampler(), 3)
    run, stream, steps = run_of(), sampler(), 0

    def step(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 15 and rank == world - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    hook = run.optimizer.register_step_post_hook(step)
    try:
        fit(run, stream, 3)
    except Stopped as stopped:
        code = stopped.code
    hook.remove()
    if rank == 0:
        run.save(folder / "run.pt")
    with distributed.awaited():
        pass
    from transferkit.finetune import read_run
    from transferkit.stopping import _state

    _state.asked = False  # as in a new process
    again, stream = run_of(seed=5), sampler()
    again.restore(read_run(folder / "run.pt"))
    stream.load_state_dict(again.sampler_state)
    torch.manual_seed(99)
    fit(again, stream, 3)
    now, then = again.model.state_dict(), whole.model.state_dict()
    near = max(float((now[name].double() - then[name].double()).abs().max()) for name in then)
    weights = all(torch.equal(now[name], then[name]) for name in then if "running" not in name)
    return [
        code,
        steps,
        weights,
        near < 1e-6,
        again.history[1].patches,
        again.history[1].loss - whole.history[1].loss,
    ]


def main(folder: Path) -> None:
    stop_on_sigterm()
    early = sampler()  # before there is a group
    found: dict[str, Any] = {}
    with process_group(torch.device("cpu"), timeout=60):
        rank, world = distributed.place_among_ranks()
        with process_group(torch.device("cpu")):  # one is there
            found["refused"] = starts(folder, rank, world, early)
        found["patches"] = sum(len(batch) for batch in early if not batch.is_filler)
        found["stopped"] = stopped_and_resumed(folder, rank, world)
    with process_group(torch.device("cpu"), timeout=2):  # another, in the same job
        with distributed.awaited():
            time.sleep(4 * (rank == 1))
        found["awaited"] = distributed.world_size()
        (folder / f"{rank}.json").write_text(json.dumps(found))
        if rank == 1:
            time.sleep(6)
        distributed.sum_over_ranks(torch.ones(1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
