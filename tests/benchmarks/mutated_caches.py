"""Damage a cache's files at random, and see that features are right, or refused, and right after the next fill.

python -m tests.benchmarks.mutated_caches --count 20000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from tests.checkpoints.mutated_files import mutated
from transferkit.datasets import ImageListDataset
from transferkit.errors import TransferKitError
from transferkit.features import FeatureCache, PatchFeatures
from transferkit.sampler import AllPatches, MultiscaleSampler, PatchGrid

GRID, SIDE = PatchGrid(scales=(1, 2), min_scales=2, target=4), 8
PRECISION = torch.float32


class Damaged:
    """A small cache in ``folder`` whose files are damaged and mended again."""

    def __init__(self, folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        files = []
        for place in range(3):
            pixels = torch.randint(256, (12, 16 + place, 3), dtype=torch.uint8, generator=generator)
            files.append(folder / f"{place}.png")
            Image.fromarray(pixels.numpy()).save(files[-1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = nn.Conv2d(3, 2, 5)
        self.features = PatchFeatures(network, pool=nn.Identity(), patch_size=SIDE)
        self.data = ImageListDataset(files, boxes=[[[1, 1, 9, 9]]] * 3, classes=[[1]] * 3)
        self.folder = folder / "cache"
        self.cache().fill()
        self.truth = [self.features(item.image, GRID(item.image.shape[1:])) for item in self.data]
        self.files = {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def cache(self) -> FeatureCache:
        return FeatureCache(self.folder, self.features, self.data, grid=GRID, precision=PRECISION)

    def damage(self, dice: random.Random) -> str:
        """Damage one file, or several at once; return which."""
        chosen = dice.sample(sorted(self.files), dice.choice((1, 1, 1, 2, 4)))
        for path in chosen:
            other = self.files[dice.choice(sorted(self.files))]
            path.write_bytes(mutated(self.files[path], other, dice))
        return ", ".join(path.name for path in chosen)

    def outcome(self) -> str:
        """Return what came of reading and filling; raise if anything but the truth was handed out."""
        cache, refused = self.cache(), 0
        for index in range(3):  # before the cache has been looked through
            try:
                self.check(cache, index)
            except TransferKitError:
                refused += 1
        missing = cache.missing()
        refused += len(missing)
        for index in set(range(3)) - set(missing):
            self.check(cache, index)
        cache.fill()
        for index in range(3):
            self.check(cache, index)
        settings = {"grid": GRID, "patch_size": SIDE, "patches_per_image": 4, "balance": AllPatches()}
        for batch in MultiscaleSampler(cache, mode="test", shuffle=False, **settings):
            image = int(batch.image_index[0])
            assert torch.equal(batch.pixels, self.truth[image]), "the sampler's features are others"
        return "refused and mended" if refused else "read"

    def check(self, cache: FeatureCache, index: int) -> None:
        found = cache[index]
        assert found.classes.tolist() == [1]
        whole = torch.equal(torch.from_numpy(found.features.copy()), self.truth[index])
        if not whole:  # a feature that is damaged on disk is found when the cache is looked through
            assert index in cache.missing(), f"features of image {index} are others"

    def mend(self) -> None:
        for path, content in self.files.items():
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
        for path in self.folder.rglob("*"):
            if path.is_file() and path not in self.files:
                path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    dice, tally, slowest = random.Random(options.seed), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        damaged = Damaged(Path(folder))
        for number in range(options.count):
            names, begun = damaged.damage(dice), time.process_time()
            try:
                tally[damaged.outcome()] += 1
            except Exception:
                tally["another error"] += 1
                print(f"#{number} of seed {options.seed}, {names}: {traceback.format_exc()}")
            slowest = max(slowest, time.process_time() - begun)
            damaged.mend()
    print(f"{options.count:,} damaged caches: {dict(tally)}; the slowest took {slowest:.2f} s")
    return 1 if tally["another error"] else 0


if __name__ == "__main__":
    sys.exit(main())
