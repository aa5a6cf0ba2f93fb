"""How a start grows with the number of photos: seconds of processor, and memory, of one rank.

    python -m tests.benchmarks.growth --out OUT --photos 10000 100000 1000000

Made-up photos of 96 x 64 pixels with one to three objects, in a VOCdevkit, up to --on_disk of them; of more, what reads
files is computed from the largest number that was measured, in proportion, and its column says so. What needs the
photos' sizes alone is measured at every number. The first start reads all annotations, headers and digests; the second one
finds them in the index. Features are of a network so small that only their number counts, and written without waiting for
the disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import transferkit as tk
from tests.benchmarks.table import Table
from transferkit.datasets import VOC_CLASSES, VOCDataset
from transferkit.datasets._objects import truth_of
from transferkit.distributed import in_process_group, place_among_ranks, process_group
from transferkit.features import FeatureCache, PatchFeatures
from transferkit.features._photos import Look
from transferkit.files import write_atomically
from transferkit.sampler import MultiscaleSampler, PatchGrid

GRID = PatchGrid(scales=(1, 2), target=None)
RANKS = (1, 2, 4)
FILES = ("first start", "second start")  # the processes that read files


def main() -> None:
    """Run the benchmark, or with --child one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where photos and features go")
    parser.add_argument("--photos", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--on_disk", type=int, default=100_000, metavar="N", help="photos that are written at most"
    )
    parser.add_argument("--child", choices=[*CHILDREN], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        CHILDREN[options.child](options)
        return
    found = {photos: measured(options, photos) for photos in sorted(options.photos)}
    print(table_of(found, options.on_disk).markdown())


def measured(options: argparse.Namespace, photos: int) -> dict[str, float]:
    """Return what each step takes with so many photos, by the name of its process and its own."""
    found = run(options, "sizes alone", photos)
    for ranks in RANKS:
        found |= {
            f"{name}, {ranks} ranks": value for name, value in run(options, "gather", photos, ranks).items()
        }
    if photos <= options.on_disk:
        write_photos(folder_of(options, photos), photos)
        for name in FILES:
            found |= run(options, name, photos)
    return found


def table_of(found: dict[int, dict[str, float]], on_disk: int) -> Table:
    """Return the table of steps by numbers of photos."""
    columns = {f"{photos:,}" + " (files computed)" * (photos > on_disk): ",.1f" for photos in found}
    table = Table("A start, processor seconds of one rank", {"": "", **columns})
    most = max((photos for photos in found if photos <= on_disk), default=0)
    for step in dict.fromkeys(step for one in found.values() for step in one):
        cells = [
            one.get(step, found.get(most, {}).get(step, 0.0) * photos / max(1, most))
            for photos, one in found.items()
        ]
        table.add(step, *cells)
    return table


def run(options: argparse.Namespace, child: str, photos: int, ranks: int = 1) -> dict[str, float]:
    """Return what a process says at its end."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    words = [sys.executable, *launch, "-m", "tests.benchmarks.growth", "--child", child]
    words += ["--out", options.out, "--photos", photos]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True, check=True)
    return {f"{child}: {name}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


class Steps:
    """What the steps of a process take."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = step()
        self.found[name] = time.process_time() - began
        return result

    def say(self) -> None:
        """Print them, with the most memory that the process had."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({**self.found, "most memory, MB": peak}), flush=True)


class Sizes:
    """A data set that tells sizes alone."""

    class_names = tuple(f"c{number}" for number in range(21))

    def __init__(self, photos: int) -> None:
        self.photos, self.ids = photos, tuple(f"{index:08d}" for index in range(photos))

    def __len__(self) -> int:
        return self.photos

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("not decoded here")

    def image_size(self, index: int) -> tuple[int, int]:
        return 333 + index % 7, 500


def sizes_alone(options: argparse.Namespace) -> None:
    """What a sampler and a test need of all photos."""
    data, step = Sizes(options.photos[0]), Steps()
    sampler = tk.NEON2016.sampler(data, mode="train", rank=0, world_size=64)
    step("first schedule of 64 ranks", lambda: len(sampler))
    step("next schedule", lambda: (sampler.set_epoch(1), len(sampler)))
    step("state_dict", sampler.state_dict)
    test = tk.RECOMMENDED.sampler(data, mode="test", rank=0, world_size=64)
    step("count of patches", lambda: len(test))
    scores = torch.rand(len(data), 21, dtype=torch.float64)
    present = torch.rand(len(data), 21) < 0.07
    present[:, 0] = False
    names = ("background", *data.class_names[1:])
    step("evaluate", lambda: tk.evaluate(scores, present, torch.zeros_like(present), class_names=names))
    step.say()


def gather(options: argparse.Namespace) -> None:
    """Bring the scores of all ranks together, each of which has its share."""
    photos, step = options.photos[0], Steps()
    with process_group(torch.device("cpu")):
        rank, ranks = place_among_ranks()
        scorer = tk.ImageScorer(photos, 21)
        mine = torch.arange(rank, photos, ranks)
        for part in mine.split(4096):
            scorer.add_batch(torch.rand(len(part), 21, dtype=torch.float64), part)
        step("scores brought together", lambda: scorer.across_ranks() if in_process_group() else scorer)
        step.say()


def data_and_cache(options: argparse.Namespace, step: Steps) -> FeatureCache:
    """Make the data set and the cache, as a start does."""
    folder = folder_of(options, options.photos[0])
    index = folder / "cache" / "annotations.index"
    data = step("annotations and headers", lambda: VOCDataset(folder, index=index))
    step("classes of the photos", lambda: truth_of(data, len(data.class_names)))
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    features = PatchFeatures(network, patch_size=32)
    return step("cache opened", lambda: FeatureCache(folder / "cache", features, data, grid=GRID))


def first_start(options: argparse.Namespace) -> None:
    """Read everything once, and put features where a fill would."""
    step = Steps()
    cache = data_and_cache(options, step)
    photos, shards = cache._photos, cache._shards
    step("digests of the photos", lambda: photos.look(range(len(cache))))
    patches = GRID((64, 96))
    features = torch.zeros(len(patches), *cache.shape)
    os.fsync = lambda descriptor: None  # the disk is not what is measured
    for index, look in photos.looks.items():
        assert isinstance(look, Look)
        shards.write(look.name, index, patches, features)
    shards.index.save()
    step.say()


def second_start(options: argparse.Namespace) -> None:
    """What every further start takes until the first minibatch."""
    step = Steps()
    cache = data_and_cache(options, step)
    step("size()", cache.size)
    step("fill()", cache.fill)
    for number in ("first", "second"):
        how = {"patches_per_image": 4, "patch_size": 32, "batch_size": 8}
        sampler = MultiscaleSampler(cache, grid=GRID, **how)
        step(f"{number} sampler, to its first minibatch", lambda: next(iter(sampler)))  # noqa: B023
    step.found["together"] = sum(step.found.values())
    step.say()


def folder_of(options: argparse.Namespace, photos: int) -> Path:
    return Path(options.out, f"{photos}_photos")


def write_photos(root: Path, photos: int) -> None:
    """Write a VOCdevkit of photos that differ in their last bytes, unless it is there."""
    folder = root / "VOC2007"
    listing = folder / "ImageSets" / "Main" / "trainval.txt"
    if listing.exists():
        return
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    pixels, file = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=30)
    for index in range(photos):
        name = f"{index:07d}"
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(file.getvalue() + name.encode())
        objects = "".join(
            f"<object><name>{VOC_CLASSES[1 + (index + place) % 20]}</name><truncated>{place % 2}</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{1 + 7 * place}</xmin><ymin>{3 + index % 5}</ymin>"
            f"<xmax>{40 + 9 * place}</xmax><ymax>50</ymax></bndbox></object>"
            for place in range(1 + index % 3)
        )
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename><size><width>96</width><height>64</height>"
            f"<depth>3</depth></size>{objects}</annotation>"
        )
    write_atomically(listing, lambda file: file.writelines(b"%07d\n" % index for index in range(photos)))


CHILDREN = {
    "sizes alone": sizes_alone,
    "gather": gather,
    "first start": first_start,
    "second start": second_start,
}

if __name__ == "__main__":
    main()
