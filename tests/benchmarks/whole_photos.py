"""How long backbones take for a whole photo at the size that shared features want: on huge pages, with batch norms folded.

    python -m tests.benchmarks.whole_photos

A photo of 500 x 375 enlarged to 1195 x 896 pixels, at which a patch of a quarter of its shorter side is 224 pixels wide.
Each way is timed in a process of its own, since torch decides on pages with its first tensor, and in turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, write_tables
from transferkit.backbones import fold_batch_norms, truncate
from transferkit.devices import SWITCH
from transferkit.finetune import build_network
from transferkit.heads import find_head

SIZE = (896, 1195)
WAYS = {
    "as it is": (False, False),
    "huge pages": (True, False),
    "batch norms folded": (False, True),
    "both": (True, True),
}


def seconds_alone(backbone: str, folded: bool, runs: int, threads: int) -> float:
    """Return the best time of one photo in this process."""
    torch.set_num_threads(threads)
    model = build_network(backbone).model.eval()
    backbone = truncate(model, before=find_head(model).name)
    if folded:
        backbone = fold_batch_norms(backbone, torch.rand(1, 3, 224, 224))
    pixels = torch.rand(1, 3, *SIZE).to(memory_format=torch.channels_last)
    times = []
    with torch.no_grad():
        for _ in range(runs + 1):
            started = time.perf_counter()
            backbone(pixels)
            times.append(time.perf_counter() - started)
    return min(times[1:])


def seconds_of(options: argparse.Namespace, backbone: str, huge: bool, folded: bool) -> float:
    """Return the same, measured in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.whole_photos", "--threads", str(options.threads),
               "--runs", str(options.runs), "--alone", backbone, *["--folded"] * folded]  # fmt: skip
    environment = {**os.environ, SWITCH: str(int(huge))}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    seconds = float(found.stdout.split()[-1])
    say(f"{backbone}, huge pages {huge}, folded {folded}: {seconds:.3f} s")
    return seconds


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    if options.alone:
        print(seconds_alone(options.alone, options.folded, options.runs, options.threads))
        return
    tables = []
    for backbone in options.backbones:
        has_norms = any(
            isinstance(module, torch.nn.BatchNorm2d) for module in build_network(backbone).model.modules()
        )
        ways = {
            name: partial(seconds_of, options, backbone, *way)
            for name, way in WAYS.items()
            if has_norms or not way[1]
        }
        found = [{name: way() for name, way in ways.items()} for _ in range(options.rounds)]
        table = Table(
            f"{backbone}, one photo of {SIZE[1]} x {SIZE[0]}, {options.threads} threads, {options.rounds} rounds",
            {"way": "", "seconds": ".2f", "times faster": ".2f"},
        )
        for name in ways:
            table.add(name, [one[name] for one in found], [one["as it is"] / one[name] for one in found])
        print(table.markdown(), end="\n\n")
        tables.append(table)
    if options.json:
        write_tables(options.json, tables)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["alexnet-convolutions", "efficientnet-lite0"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3, help="in each process, of which the best counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the tables here")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folded", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
