"""Whatever befalls who writes a cache, what is whole stays, the reason is told, and the next fill goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.features.scenes import GRID, SIDE, Scenes, backbone, features
from tests.finetune.launch import torchrun
from transferkit.errors import DataError, OutputError
from transferkit.features import FeatureCache, PatchFeatures, cache_contents, shards
from transferkit.files import write_atomically
from transferkit.locks import lock_folder
from transferkit.sampler import AnnotatedImage, MultiscaleSampler


def cache_of(
    folder: Path, scenes: Scenes | None = None, network: int = 0, *, fill: bool = True
) -> FeatureCache:
    cache = FeatureCache(folder, features(network), scenes or Scenes(), grid=GRID)
    if fill:
        cache.fill()
    return cache


def files_of(cache: FeatureCache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.folder.glob("*.features")}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_disk_that_fails_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    written: list[Path] = []

    def fails_at_the_third(path: Path, write: Any) -> Path:
        def fail(file: Any) -> None:
            file.write(b"some")
            raise OSError(number, os.strerror(number))

        written.append(path)
        return write_atomically(path, fail if len(written) == 3 else write)

    cache = cache_of(tmp_path / "failing", fill=False)
    monkeypatch.setattr(shards, "write_atomically", fails_at_the_third)
    with pytest.raises(OutputError, match=rf"cannot write .*\.features: {os.strerror(number)}; .*stay"):
        cache.fill()
    monkeypatch.undo()
    assert len(cache.missing()) == 3 and not list(cache.folder.glob("*.part"))
    cache.fill()
    assert files_of(cache) == files_of(cache_of(tmp_path / "whole"))


class Passing(Scenes):
    """A photo cannot be read for a while."""

    away = True

    def __getitem__(self, index: int) -> AnnotatedImage:
        if index == 2 and self.away:
            raise OSError(errno.EIO, "Input/output error")
        return super().__getitem__(index)


def test_an_error_that_passes_is_forgiven_at_the_next_fill(tmp_path: Path) -> None:
    scenes = Passing()
    cache = cache_of(tmp_path, scenes)
    assert cache.missing() == [] and cache.patch_count(2) == 0
    with pytest.raises(DataError, match="Input/output error"):
        cache[2]
    assert cache_of(tmp_path, scenes, fill=False).missing() == [2]
    scenes.away = False
    cache.fill()
    assert cache.patch_count(2) == len(cache[2].features) > 0
    assert cache_of(tmp_path, scenes, fill=False).missing() == []


class Unmeasurable(Scenes):
    """Not even the size of a photo can be read."""

    def image_size(self, index: int) -> tuple[int, int]:
        if index == self.broken:
            raise DataError("no header")
        return super().image_size(index)

    def fingerprint(self, index: int) -> str:
        if index == self.broken:
            raise OSError("no file")
        return super().fingerprint(index)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_a_photo_that_cannot_be_measured_is_skipped(tmp_path: Path, mode: Any) -> None:
    cache = cache_of(tmp_path, Unmeasurable(broken=3))
    settings: dict[str, Any] = {"grid": GRID, "patch_size": SIDE, "patches_per_image": 4, "batch_size": 4}
    with pytest.raises(DataError, match="image 3 of the data set cannot be used.*truncated file"):
        list(MultiscaleSampler(cache, mode=mode, **settings))
    with pytest.warns(UserWarning, match="skipped an image"):
        batches = list(MultiscaleSampler(cache, mode=mode, on_bad_image="skip", **settings))
    assert {int(batch.image_index[0]) for batch in batches} == {0, 1, 2, 4}


def test_two_who_fill_one_cache_compute_each_photo_once(tmp_path: Path, root: Path) -> None:
    command = [sys.executable, "-m", "tests.features.fill_and_count", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, cwd=root, env=environment, stdout=pipe, text=True) for _ in range(3)]
    said = [writer.communicate(timeout=120)[0].split(maxsplit=1) for writer in writers]
    assert sorted(int(count) > 0 for count, _ in said) == [False, False, True]
    assert {missing for _, missing in said} == {"[]\n"}
    assert files_of(cache_of(tmp_path, Scenes(10))) == files_of(cache_of(tmp_path / "alone", Scenes(10)))


def test_a_cache_that_another_job_fills_can_be_read(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    with lock_folder(cache.folder):
        again = cache_of(tmp_path, fill=False)
        assert again.missing() == [] and len(again[1].features)
        with pytest.raises(OutputError, match="in use by another job"):
            cache_contents(tmp_path).delete_unused()


@pytest.mark.parametrize(("full_on", "disks"), [(-1, "shared"), (1, "shared"), (-1, "apart")])
def test_ranks_know_of_each_other(tmp_path: Path, full_on: int, disks: str, root: Path) -> None:
    job = torchrun(root / "tests" / "features" / "fill_in_ranks.py", tmp_path, 3, full_on, disks, cwd=root)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    said = [(tmp_path / f"rank {rank}").read_text() for rank in range(2)]
    if full_on < 0:  # image 3 could not be decoded by rank 1
        assert said == ["[] [5, 0]"] * 2  # each has a part of every minibatch, or a filler
    else:
        assert "No space left" in said[0] and said[0].partition(" [")[2] == said[1].partition(" [")[2]
    with warnings.catch_warnings():
        whole = cache_of(tmp_path / "alone")
    held, places = [], [tmp_path] if disks == "shared" else [tmp_path / "disk 0", tmp_path / "disk 1"]
    for place in places:
        cache = FeatureCache(place, features(), Scenes(), grid=GRID, precision=torch.float32)
        assert full_on > 0 or cache.missing() == [3]  # which could not be decoded
        cache.fill()
        assert len(files_of(cache)) == len(files_of(whole)) == 5
        held.append(files_of(cache))
    assert held[0] == held[-1]


def test_what_nothing_uses_is_told_and_deleted(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache_of(root, Scenes(5)), cache_of(root, Scenes(5), network=1)
    (root / "notes.txt").write_text("one's own")
    (root / ("0" * 32)).mkdir()  # as an earlier version left it
    (root / ("0" * 32) / "0000001.npy").write_bytes(b"old")
    (root / ("0" * 32) / "thesis.txt").write_text("one's own")
    kept = cache_of(root, Scenes(5, changed=1), fill=False)
    kept.fill()
    contents = kept.contents()
    features_of = [
        sum(path.suffix == ".features" for path in some) for some in (contents.used, contents.unused)
    ]
    assert features_of == [5, 6]  # the photo as it was, and all of the other network
    assert "are in use, and" in str(contents)
    whole = sum(path.stat().st_size for path in contents.unused)
    assert contents.delete_unused() == whole > 0
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {path for path in left if not path.startswith(kept.key)} == {
        "notes.txt",
        f"{'0' * 32}/thesis.txt",
    }
    assert kept.missing() == [] and not kept.contents().unused
    both = [cache_of(root, Scenes(5)), kept]
    assert not cache_contents(root, both).unused
    other = FeatureCache(root, PatchFeatures(backbone(2), patch_size=SIDE), Scenes(), grid=GRID)
    assert {path.parent for path in cache_contents(root, both).unused} == {other.folder}
    assert cache_contents(root).delete_unused() and not any(root.glob("*/*.features"))
