"""The full recipe on a GPU: all layers of AlexNet trained on 448 patches of each photo, and photos scored.

    python -m tests.benchmarks.recipe_on_gpu --data_dir DIR

Measures patches per second of training and scoring, what that makes for an epoch of 5,000 photos, and the share of the time
that the device waits for patches; and the same with patches that lie on the device already, which is as fast as it can
get. Without --data_dir the photos are made up. Ends with status 3, and measures nothing, where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import transferkit as tk
from tests.benchmarks.machine import describe_machine, machine_line
from tests.benchmarks.made_up import write_made_up_devkit
from tests.benchmarks.rounds import ratios, say
from tests.benchmarks.table import Table, write_tables
from tests.benchmarks.waiting import AlreadyThere, Watched
from transferkit.alexnet import AlexNet
from transferkit.datasets import VOCDataset
from transferkit.finetune import (
    NEON2016,
    LoopSettings,
    Run,
    build_optimizer,
    build_schedule,
    score_images,
    train_epoch,
)
from transferkit.preprocessing import IMAGENET

NO_GPU = 3
EPOCH = 5000 * 448


def main() -> int:
    """Run the benchmark; return the exit status."""
    options = parse_arguments()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU here that torch can use: the full recipe on a GPU was not measured.",
            file=sys.stderr,
        )
        return NO_GPU
    print(machine_line(describe_machine()))
    with TemporaryDirectory() as temporary:
        folder = options.data_dir
        if folder is None:
            say(f"makes up {options.photos} photos")
            folder = write_made_up_devkit(Path(temporary), {"trainval": options.photos}, (375, 500))
        data = VOCDataset(folder, max_images=options.photos)
        table = measure(data, device, options)
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])
    return 0


def measure(data: VOCDataset, device: torch.device, options: argparse.Namespace) -> Table:
    """Return the table of all rounds; one round before them warms up and is not counted."""
    streaming = {"seed": 13, "num_workers": options.workers, "device": device, "patch_size": options.side}
    streaming |= {"patches_per_image": options.patches, "batch_size": options.batch}
    loop = LoopSettings(compile=options.compile)
    run = full_recipe(len(data.class_names), options.hidden, device)
    passes: dict[str, tuple[Callable[[Watched], object], Any]] = {}
    for mode, use in (
        ("train", lambda s: train_epoch(run, s, loop=loop)),
        ("test", lambda s: score(run, s, data, loop)),
    ):
        sampler = NEON2016.sampler(data, mode=mode, **streaming)
        name = {"train": "training", "test": "scoring"}[mode]
        passes[f"{name}, from photos"] = (use, sampler)
        passes[f"{name}, patches on the device"] = (use, AlreadyThere(sampler, options.kept))
    passes["patches alone, no network"] = (
        lambda s: [None for _ in s],
        NEON2016.sampler(data, mode="test", **streaming),
    )
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    waits: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(options.rounds + 1):
        for name, (use, source) in passes.items():
            taken, waited = one_pass(use, source, device)
            say(f"round {number} of {options.rounds}: {name}, {taken:.2f} s, of which {waited:.2f} s waiting")
            if number:
                seconds[name].append(taken)
                waits[name].append(100 * waited / taken)
    return tabulate(seconds, waits, len(data) * options.patches, options)


def full_recipe(num_classes: int, hidden: int, device: torch.device) -> Run:
    """Return AlexNet with the recipe's adaptation layers, every layer trained; what its weights are plays no role here."""
    torch.manual_seed(13)
    model = AlexNet(hidden=hidden)
    tk.replace_head(model, lambda width: NEON2016.head(width, num_classes), name="classifier.6")
    settings = NEON2016.optimization(from_scratch=False)
    optimizer = build_optimizer(model.to(device).parameters(), settings)
    return Run(model, optimizer, build_schedule(optimizer, settings), IMAGENET)


def score(run: Run, sampler: Any, data: VOCDataset, loop: LoopSettings) -> torch.Tensor:
    """Score the photos."""
    scorer = NEON2016.scorer(len(data), len(data.class_names), device=run.device)
    return score_images(run.model, sampler, scorer, run.preprocessing, loop=loop)


def one_pass(use: Callable[[Watched], object], source: Any, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a pass over all patches, and those of them that the device waited for patches."""
    watched = Watched(source, device)
    started = time.perf_counter()
    use(watched)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, watched.waited()


def tabulate(
    seconds: dict[str, list[float]], waits: dict[str, list[float]], patches: int, options: argparse.Namespace
) -> Table:
    """Return the table."""
    table = Table(
        f"NEON2016 with AlexNet, all layers trained, {options.photos} photos with {options.patches} patches each in "
        f"minibatches of {options.batch}, {options.workers} workers, {options.rounds} rounds on {options.device}"
        f"{', compiled' * options.compile}",
        {"what": "", "patches/s": ",.0f", "epoch of 5,000 photos x 448, minutes": ".2f", "waiting for patches, %": ".1f",
         "of the ceiling's speed": ".2f"},
    )  # fmt: skip
    for name, found in seconds.items():
        ceiling = seconds.get(f"{name.partition(',')[0]}, patches on the device")
        share = ratios(ceiling, found) if ceiling else ""
        minutes = [EPOCH * s / patches / 60 for s in found]
        table.add(name, [patches / s for s in found], minutes, waits[name], share)
    table.notes.append("The ceiling is the same work on patches that lie on the device already. "
                       "Waiting is the time between the end of one step's work and the next minibatch being there.")  # fmt: skip
    return table


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data_dir", type=Path, help="folder that holds VOCdevkit; photos are made up without it"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--patches", type=int, default=448, help="per photo")
    parser.add_argument("--batch", type=int, default=64, help="patches per minibatch")
    parser.add_argument("--side", type=int, default=224, help="of a patch, pixels")
    parser.add_argument(
        "--kept", type=int, default=64, help="minibatches that lie on the device for the ceiling"
    )
    parser.add_argument("--hidden", type=int, default=4096, help="width of fc6 and fc7")
    parser.add_argument("--compile", action="store_true", help="compile the network")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the table here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
