"""A writer may be killed at any moment: what it leaves is whole, and the cache ends bit-equal to an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.features.scenes import GRID, Scenes, features
from transferkit.features import FeatureCache
from transferkit.sampler import MultiscaleSampler

IMAGES = 10
KILLS = int(os.environ.get("TRANSFERKIT_KILLS", "2"))


def start(folder: Path, root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.features.fill_slowly", str(folder), str(IMAGES)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)


def cache_in(folder: Path) -> FeatureCache:
    return FeatureCache(folder, features(), Scenes(IMAGES), grid=GRID)


def files_of(cache: FeatureCache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.folder.glob("*.features"))}


@pytest.mark.timeout(60 + 30 * KILLS)
def test_a_killed_writer_loses_at_most_the_image_in_work(tmp_path: Path, root: Path) -> None:
    undisturbed = cache_in(tmp_path / "undisturbed")
    undisturbed.fill()
    whole = files_of(undisturbed)

    chance = random.Random(0)
    folder, killed, interrupted = tmp_path / "killed", 0, 0
    while killed < KILLS:
        writer = start(folder, root)
        assert writer.stdin and writer.stdout and writer.stdout.readline() == "ready\n"
        before = len(cache_in(folder).missing())
        writer.stdin.write(
            "\n" * chance.randint(1, max(1, before - 1))
        )  # it does so many images and then waits
        writer.stdin.flush()
        time.sleep(chance.uniform(0, 0.15))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        killed += 1
        cache = cache_in(folder)
        left = files_of(cache)
        assert all(left[name] == whole[name] for name in left)  # nothing half-written is under its name
        interrupted += len(cache.missing()) > 0
        assert len(cache.missing()) <= before
        if len(cache.missing()) < 2:  # take some away, so that the next has work
            for name in chance.sample(sorted(files_of(cache)), IMAGES // 2):
                (cache.folder / name).unlink()
    assert interrupted
    cache = cache_in(folder)
    cache.fill()
    assert files_of(cache) == whole
    assert (
        len(list(MultiscaleSampler(cache, grid=GRID, patch_size=32, patches_per_image=8, batch_size=8)))
        == IMAGES
    )
