"""The demo's target task, as a VOCdevkit: scenes of digits for training and for the test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from transferkit.datasets.demo.backdrop import load_photographs
from transferkit.datasets.demo.ink import Digits, load_digits
from transferkit.datasets.demo.scene import make_scene
from transferkit.datasets.voc_writer import write_voc_images
from transferkit.errors import ArgumentError, require
from transferkit.progress import Progress, track
from transferkit.sampler.item import AnnotatedImage

DEMO_CLASSES = ("background", *(f"digit{number}" for number in range(10)))
"""The demo's classes; 1..10 are the digits 0..9."""

_SETTINGS = "demo.json"  # beside the data: what it was made with


def write_demo_devkit(
    folder: Path | str,
    seed: int = 13,
    *,
    num_train: int = 150,
    num_test: int = 100,
    image_size: tuple[int, int] = (112, 144),
    progress: Progress = False,
) -> Path:
    """Write scenes of handwritten digits as ``VOCdevkit/VOC2007``, with image sets ``trainval`` and ``test``.

    The digits are scikit-learn's 1,797 scans of handwriting, the backgrounds pieces of its two sample
    photographs; training and test scenes share no digit. The same arguments give the same files, byte for byte
    (with one version of Pillow and its JPEG encoder).

    Args:
        folder: Gets the ``VOCdevkit``. One that was written with the same arguments is left as it is.
        seed: Decides everything.
        num_train: Scenes in ``trainval``.
        num_test: Scenes in ``test``.
        image_size: ``(height, width)`` of the scenes, pixels; every third is turned to stand upright.
        progress: Counts scenes.

    Returns:
        The ``VOC2007`` folder.

    Raises:
        ArgumentError: A number out of range, or ``folder`` holds another ``VOCdevkit/VOC2007``.
    """
    require(num_train > 0 and num_test > 0, "num_train and num_test", "positive", (num_train, num_test))
    require(len(image_size) == 2 and min(image_size) >= 48, "image_size", "two numbers from 48 up", image_size)
    settings = {"seed": seed, "num_train": num_train, "num_test": num_test, "image_size": list(image_size)}
    target = Path(folder) / "VOCdevkit" / "VOC2007"
    if target.exists():
        note = target / _SETTINGS
        if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == settings:
            return target
        raise ArgumentError(f"{target} is there already, with other data; name another folder, or remove it")
    partial = target.with_name(
        f".{target.name}.partial"
    )  # a kill leaves this, never half of the data in its place
    shutil.rmtree(partial, ignore_errors=True)
    train, test = load_digits(seed)
    for image_set, digits, numbers in (
        ("trainval", train, range(1, num_train + 1)),
        ("test", test, range(num_train + 1, num_train + num_test + 1)),
    ):
        scenes = track(numbers, progress, description=f"write {image_set}", unit="scene")
        write_voc_images(partial, image_set, _scenes(digits, scenes, image_size, seed), DEMO_CLASSES)
    (partial / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return partial.replace(target)


def _scenes(
    digits: Digits, numbers: Iterable[int], image_size: tuple[int, int], seed: int
) -> Iterator[AnnotatedImage]:
    photographs = load_photographs()
    for number in numbers:
        size = image_size[::-1] if number % 3 == 0 else image_size
        yield make_scene(digits, photographs, size, np.random.default_rng([seed, 2, number]), f"{number:06d}")
