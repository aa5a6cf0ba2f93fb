"""Does memory stay flat over an epoch?

    python -m tests.benchmarks.sampler_memory ../shared/voc

Runs one epoch of training minibatches over all photos of trainval and test, and tells the memory of this process and its
workers after every tenth of it. Ends with status 1 if the last nine tenths grow by more than 5 %.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from torch.utils.data import ConcatDataset

from tests.benchmarks.table import Table, write_tables
from transferkit.datasets import VOCDataset
from transferkit.sampler import MultiscaleSampler


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voc", help="a folder with VOCdevkit")
    parser.add_argument("--patches", type=int, default=448, help="per image")
    parser.add_argument("--mix", type=int, default=1, help="images that share minibatches")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    data = ConcatDataset([VOCDataset(options.voc, image_set=image_set) for image_set in ("trainval", "test")])
    sampler = MultiscaleSampler(
        data, patches_per_image=options.patches, mix_images=options.mix, num_workers=options.workers, seed=13
    )
    tenth = -(-len(sampler) // 10)
    table = Table(
        f"Memory of the process and its workers, {len(data)} photos, {options.patches} patches each",
        {"done": ".0%", "patches": ",.0f", "memory, MB": ",.0f", "seconds": ".1f"},
    )
    seen, patches, started = [], 0, time.perf_counter()
    for number, batch in enumerate(sampler, start=1):
        patches += len(batch)
        if number % tenth == 0 or number == len(sampler):
            seen.append(megabytes())
            done = f"{number / len(sampler):4.0%} of {len(data)} photos, {patches:8,d} patches"
            table.add(number / len(sampler), patches, seen[-1], time.perf_counter() - started)
            print(f"{done}: {seen[-1]:6.0f} MB, {time.perf_counter() - started:6.1f} s", flush=True)
    growth = max(seen[1:]) / seen[1] - 1
    table.notes.append(f"Growth after the first tenths: {growth:+.1%}; up to 5 % passes.")
    print(*table.notes)
    if options.json:
        write_tables(options.json, [table])
    return 0 if growth < 0.05 else 1


def megabytes() -> float:
    """Return the memory of this process and its children, what they share counted once."""
    own = os.getpid()
    mine = {str(own)}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = status.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended
            continue
        if parent == str(own):
            mine.add(status.parent.name)
    total = 0
    for process in mine:
        for line in Path("/proc", process, "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


if __name__ == "__main__":
    sys.exit(main())
