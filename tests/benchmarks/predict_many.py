"""A hundred thousand small photos through predict_to: photos per second, memory at the start and the end, killed and resumed.

    python -m tests.benchmarks.predict_many --out OUT
    python -m tests.benchmarks.predict_many --out OUT --photos 10000 --shards 8

The photos are of 64 x 64 pixels, and the network takes about a millisecond for all patches of one. A process is killed
when half of the rows are there, and the same call goes on. The first thousand scores are compared with those of predict.

Measured on two cores, one process, one thread, no workers: 285 photos a second until the kill and 321 after it; 555 MB after
the first lot and 558 after the last, 569 and 573 when resumed. The scores were those of predict.

With shards, one job predicts all photos, then each of N jobs its share; three of those are killed halfway and go on. What
they wrote is joined, and compared with the file of the one job, byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import transferkit as tk
from tests.benchmarks.table import Table
from tests.finetune.test_predictions import network
from transferkit.finetune import Shard, join_predictions
from transferkit.progress import track
from transferkit.sampler import AnnotatedImage, PatchGrid

RECIPE = replace(
    tk.RECOMMENDED,
    grid=PatchGrid(scales=(1, 2), target=None),
    pyramid_scales=(1,),
    patch_size=32,
    hidden=(16,),
    epochs=1,
    choice=None,
)


def main() -> None:
    """Run the benchmark, or with --child one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where photos and predictions go")
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--shards", type=int, default=0)
    parser.add_argument("--shard", type=Shard.parse, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        predict(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    write_photos(options.out / "photos", options.photos)
    classifier().save(options.out / "tiny.tk")
    table = Table(
        f"{options.photos:,} photos of 64 x 64 pixels",
        {"": "", "photos": ",.0f", "a second": ",.0f", "MB, start": ".0f", "MB, end": ".0f"},
    )
    if options.shards:
        table.add("one job", *run(options))
        table.notes.append(in_shards(options, table))
        print(table.markdown())
        return
    table.add("killed", *run(options, kill_at=options.photos // 2))
    table.add("resumed", *run(options))
    with (options.out / "out.csv").open(newline="") as file:
        rows = [
            [float(cell) for cell in row[1:]]
            for _, row in zip(range(1001), list(csv.reader(file)), strict=False)
            if row[0] != "file"
        ]
    files = sorted((options.out / "photos").rglob("*.jpg"))
    again = load(options).predict(files[: len(rows)]).scores[:, 1:]
    equal = torch.equal(torch.tensor(rows, dtype=torch.float64), again)
    table.notes.append(
        f"One process, one thread, {options.workers} workers. The first {len(rows)} scores are those of predict: {equal}."
    )
    print(table.markdown())


def in_shards(options: argparse.Namespace, table: Table) -> str:
    """Predict in shards, three of them killed halfway; join them, and say whether the file is that of one job."""
    whole = (options.out / "out.csv").rename(options.out / "whole.csv")
    for left in options.out.glob("out.csv*"):
        left.unlink()
    for number in range(1, options.shards + 1):
        shard = Shard(number, options.shards)
        if number in (1, 4, 7):
            table.add(f"{shard}, killed", *run(options, len(shard.of(options.photos)) // 2, shard))
        table.add(str(shard), *run(options, shard=shard))
    joined = join_predictions(options.out / "out.csv")
    same = joined.path.read_bytes() == whole.read_bytes()
    return f"The {joined.photos:,} joined rows are those of one job, byte for byte: {same}."


def write_photos(folder: Path, count: int) -> None:
    """Write photos in folders of a thousand, if they are not there."""
    draws = np.random.default_rng(0)
    for index in track(range(count), True, description="write", unit="photo"):
        path = folder / f"{index // 1000:03}" / f"{index:06}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(path)


def classifier() -> tk.SceneClassifier:
    """Return a classifier of four photos."""
    flag, box = torch.tensor([False]), torch.tensor([[8.0, 8, 40, 40]])
    photos = [
        AnnotatedImage(
            torch.full((3, 64, 64), 60 * n, dtype=torch.uint8),
            box,
            torch.tensor([1 + n % 2]),
            flag,
            flag,
            str(n),
        )
        for n in range(4)
    ]
    return tk.SceneClassifier(network(), RECIPE, class_names=["a", "b"], device="cpu").fit(photos)


def load(options: argparse.Namespace) -> tk.SceneClassifier:
    return tk.SceneClassifier.load(
        options.out / "tiny.tk", network=network(), num_workers=options.workers, device="cpu"
    )


def predict(options: argparse.Namespace) -> None:
    """Predict all photos, and print memory and time after each lot."""
    began, done = time.monotonic(), 0

    def tell(lot: object) -> None:
        nonlocal done
        done += len(lot)  # type: ignore[arg-type]
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(done, time.monotonic() - began, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, flush=True)

    load(options).predict_to(options.out / "out.csv", options.out / "photos", on_lot=tell, shard=options.shard)


def run(
    options: argparse.Namespace, kill_at: int | None = None, shard: Shard | None = None
) -> tuple[float, float, float, float]:
    """Return photos, photos a second, and memory after the first and the last lot of a process."""
    words = [sys.executable, "-m", "tests.benchmarks.predict_many", "--child", "--out", options.out]
    words += ["--workers", options.workers, *([] if shard is None else ["--shard", shard])]
    child = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True)
    seen: list[list[float]] = []
    assert child.stdout is not None
    for line in child.stdout:
        seen.append([float(word) for word in line.split()])
        if kill_at is not None and seen[-1][0] >= kill_at:
            child.send_signal(signal.SIGKILL)
    assert child.wait() == (0 if kill_at is None else -signal.SIGKILL)
    (photos, seconds, end), start = seen[-1], seen[0][2]
    return photos, photos / seconds, start, end


if __name__ == "__main__":
    main()
