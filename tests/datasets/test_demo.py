"""The demo's data: read back as written, the same for the same seed, and as interesting as it should be."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from transferkit.datasets import (
    DEMO_CLASSES,
    VOCDataset,
    demo_source_digits,
    find_class_names,
    write_demo_devkit,
)
from transferkit.datasets.demo import draw_digit, load_digits, load_photographs, make_scene
from transferkit.errors import ArgumentError


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_devkit(folder, num_train=80, num_test=30)
    return folder


def test_it_is_a_voc_folder(demo: Path) -> None:
    train = VOCDataset(demo, class_names=DEMO_CLASSES)
    test = VOCDataset(demo, image_set="test", class_names=DEMO_CLASSES)
    assert (len(train), len(test)) == (80, 30) and not set(train.ids) & set(test.ids)
    assert find_class_names(demo) == DEMO_CLASSES
    train.verify()
    assert train.presence().present.any(0)[1:].all()
    sets = train.folder / "ImageSets" / "Main"
    marks = [line.split() for line in (sets / "digit3_trainval.txt").read_text().splitlines()]
    assert [name for name, _ in marks] == list(train.ids)
    presence = train.presence()
    expected = presence.present[:, 4].int() * 2 - 1 - presence.difficult_only[:, 4].int()
    assert [int(mark) for _, mark in marks] == expected.tolist()


def test_scenes_have_what_voc_has(demo: Path) -> None:
    items = list(VOCDataset(demo, class_names=DEMO_CLASSES))
    counts = [len(item.classes) for item in items]
    assert min(counts) == 1 and max(counts) == 5
    difficult, truncated = (
        torch.cat([getattr(item, flag) for item in items]) for flag in ("difficult", "truncated")
    )
    heights = torch.cat([item.boxes[:, 3] - item.boxes[:, 1] for item in items])
    assert 0.02 < difficult.double().mean() < 0.3
    assert 0.01 < truncated.double().mean() < 0.3
    assert heights.max() > 2.5 * heights.min()
    assert {tuple(item.image.shape[1:]) for item in items} == {(112, 144), (144, 112)}


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path, root: Path) -> None:
    call = "import sys, transferkit.datasets as d; d.write_demo_devkit(sys.argv[1], num_train=12, num_test=5)"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "3", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", call, str(tmp_path / "there")], env=environment, check=True)
    write_demo_devkit(tmp_path / "here", num_train=12, num_test=5)
    assert _digest(tmp_path / "there") == _digest(tmp_path / "here")
    write_demo_devkit(tmp_path / "other", seed=14, num_train=12, num_test=5)
    assert _digest(tmp_path / "other") != _digest(tmp_path / "here")


def test_data_that_is_there_is_kept_or_refused(demo: Path) -> None:
    before = _digest(demo)
    write_demo_devkit(demo, num_train=80, num_test=30)
    with pytest.raises(ArgumentError, match="is there already, with other data"):
        write_demo_devkit(demo, seed=14, num_train=80, num_test=30)
    assert _digest(demo) == before
    with pytest.raises(ArgumentError, match="num_train and num_test must be positive"):
        write_demo_devkit(demo, num_train=0)


def test_the_two_parts_share_no_digit() -> None:
    first, second = load_digits(13)
    assert len(first.labels) + len(second.labels) == 1797
    images = {image.tobytes() for image in first.images}
    assert not images & {image.tobytes() for image in second.images}
    for part in (first, second):
        assert set(part.labels) == set(range(10))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(48, 48), (48, 200), (130, 96)])
def test_scenes_of_any_size_hold_their_digits(seed: int, size: tuple[int, int]) -> None:
    digits, _ = load_digits(seed)
    photographs = load_photographs()
    rng = np.random.default_rng(seed)
    for number in range(10):
        item = make_scene(digits, photographs, size, rng, str(number))
        xmin, ymin, xmax, ymax = item.boxes.unbind(1)
        assert item.image.shape == (3, *size) and 1 <= len(item.classes) <= 5
        assert (xmin >= 0).all() and (ymin >= 0).all() and (xmax <= size[1]).all() and (ymax <= size[0]).all()
        assert (xmax - xmin >= 2).all() and (ymax - ymin >= 4).all()
        assert ((item.classes >= 1) & (item.classes <= 10)).all()


def test_every_digit_can_be_drawn() -> None:
    rng = np.random.default_rng(0)
    for part in load_digits(0):
        for image in part.images[::5]:
            ink = draw_digit(image, 20, rng)
            assert ink.shape[0] == 20 and ink.min() >= 0 and ink.max() <= 1 and ink.mean() > 0.1


def test_source_digits_are_balanced_and_repeat() -> None:
    images, labels = demo_source_digits(num_images=40, size=24)
    assert images.shape == (40, 3, 24, 24) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and torch.bincount(labels).tolist() == [4] * 10
    again, _ = demo_source_digits(num_images=40, size=24)
    assert torch.equal(images, again)
    assert not torch.equal(images, demo_source_digits(14, num_images=40, size=24)[0])
