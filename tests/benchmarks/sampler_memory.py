"""Does memory stay flat, however many photos there are?

    python -m tests.benchmarks.sampler_memory ../shared/voc

Runs two epochs of training minibatches over all photos of trainval and test, and looks a hundred times at the memory of
this process and its workers. Prints a line for each tenth of the run: the median and the highest of its ten looks, which
differ by what is under way. Memory first rises to what the largest photos and the workers' allocators need; what grows
with the number of photos would go on growing. So the status is 1 if the median grows by more than 5 % over the second
half of the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from itertools import chain
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
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    data = ConcatDataset([VOCDataset(options.voc, image_set=image_set) for image_set in ("trainval", "test")])
    sampler = MultiscaleSampler(
        data, patches_per_image=options.patches, mix_images=options.mix, num_workers=options.workers, seed=13
    )
    whole = options.epochs * len(sampler)
    table = Table(
        f"Memory of the process and its workers, {len(data)} photos, {options.patches} patches each, {options.epochs} epochs",
        {"done": ".0%", "patches": ",.0f", "memory, MB": ",.0f", "highest, MB": ",.0f", "seconds": ".1f"},
    )
    medians, looks, patches, started = [], [], 0, time.perf_counter()
    every = chain.from_iterable(sampler for _ in range(options.epochs))
    for number, batch in enumerate(every, start=1):
        patches += len(batch)
        if number * 100 // whole > (number - 1) * 100 // whole:
            looks.append(megabytes())
        if number * 10 // whole > (number - 1) * 10 // whole:
            medians.append(statistics.median(looks))
            table.add(number / whole, patches, medians[-1], max(looks), time.perf_counter() - started)
            print(f"{number / whole:4.0%}: {medians[-1]:6.0f} MB, highest {max(looks):6.0f} MB", flush=True)
            looks = []
    growth = medians[-1] / medians[len(medians) // 2] - 1
    table.notes.append(f"Growth over the second half: {growth:+.1%}; up to 5 % passes.")
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
