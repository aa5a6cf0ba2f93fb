"""Data that needs no download: scenes of handwritten digits on photographs, in Pascal VOC's layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transferkit.annotated import AnnotatedImage
from transferkit.datasets.voc_writer import write_voc_images
from transferkit.errors import ArgumentError, require
from transferkit.files import faults_named
from transferkit.progress import Progress, track

__all__ = ["DEMO_CLASSES", "demo_source_digits", "write_demo_devkit"]


_LUMA = np.array([0.299, 0.587, 0.114])


def load_photographs() -> list[np.ndarray]:
    """Return scikit-learn's two sample photographs, each (427, 640, 3) uint8."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(photo) for photo in load_sample_images().images]


def cut_backdrop(photographs: list[np.ndarray], size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a random piece of a random photograph, mirrored, lit and tinted at random.

    Args:
        photographs: Each (H, W, 3) uint8.
        size: ``(height, width)`` of the result, pixels.
        rng: Decides everything.

    Returns:
        (height, width, 3) float64 in 0..255.
    """
    height, width = size
    photograph = Image.fromarray(photographs[rng.integers(len(photographs))])
    largest = min(photograph.height / height, photograph.width / width)
    zoom = min(
        largest, np.exp(rng.uniform(np.log(0.8), np.log(3.0)))
    )  # photograph pixels for one of the result
    left = rng.uniform(0, photograph.width - width * zoom)
    top = rng.uniform(0, photograph.height - height * zoom)
    box = (left, top, left + width * zoom, top + height * zoom)
    piece = photograph.resize((width, height), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(piece, dtype=np.float64)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    contrast, light, tint = rng.uniform(0.5, 1.0), rng.uniform(40, 120), rng.uniform(0.8, 1.2, 3)
    lit: np.ndarray = ((pixels - pixels.mean()) * contrast + light) * tint
    return lit.clip(0, 255)


def brighter_color(background: np.ndarray, rng: np.random.Generator, distance: float = 70.0) -> np.ndarray:
    """Return a random color that is brighter than the background's mean by at least ``distance``.

    Always brighter: learning that dark on bright is the same digit took a small network twice as long.

    Args:
        background: (..., 3) in 0..255.
        rng: Decides the color.
        distance: In gray levels; less where the background leaves less.

    Returns:
        (3,) float64 in 0..255.
    """
    light = float(background.reshape(-1, 3).mean(axis=0) @ _LUMA)
    while True:
        color = rng.uniform(0, 255, 3)
        if float(color @ _LUMA) >= min(light + distance, 230):
            return color


# Handwritten digits: a split into two halves that share none, and one digit drawn at any size.

_COARSE = 8  # scikit-learn's digits are 8 x 8 pixels

_FINE = 80  # the size they are turned and stretched at


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: (N, 8, 8) float64 in 0..1, ink is 1.
        labels: (N,) int64 in 0..9.
    """

    images: np.ndarray
    labels: np.ndarray


def load_digits(seed: int) -> tuple[Digits, Digits]:
    """Return scikit-learn's 1,797 digits in two parts, two thirds and one third of every class.

    Args:
        seed: Decides which digit is in which part.
    """
    from sklearn.datasets import load_digits as load

    bunch = load()
    images, labels = bunch.images / 16.0, bunch.target.astype(np.int64)
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.concatenate([np.arange(count) / count for count in np.bincount(labels)])  # in its class, 0..1
    first, second = order[place < 2 / 3], order[place >= 2 / 3]
    return Digits(images[first], labels[first]), Digits(images[second], labels[second])


def draw_digit(image: np.ndarray, height: int, rng: np.random.Generator) -> np.ndarray:
    """Return how much ink covers each pixel of a digit drawn with strokes of sharp, smooth edges.

    The digit is leaned and stretched a little, and cropped to its ink.

    Args:
        image: (8, 8) in 0..1.
        height: Of the result, pixels.
        rng: Decides lean and stretch.

    Returns:
        (height, width) float64 in 0..1; width follows from the digit.
    """
    coarse = Image.fromarray(np.pad(image, 2).astype(np.float32) * 255)
    size = _FINE * (_COARSE + 4) // _COARSE
    fine = coarse.resize((size, size), Image.Resampling.BICUBIC)
    fine = fine.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    ink = _sharpen(np.asarray(fine, dtype=np.float64) / 255)
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    width = max(3, round(height * ink.shape[1] / ink.shape[0] * rng.uniform(0.85, 1.15)))
    drawn = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(drawn, dtype=np.float64).clip(0, 1)


def _sharpen(ink: np.ndarray) -> np.ndarray:
    return ((ink - 0.42) / 0.2).clip(0, 1)


# Scenes of several handwritten digits: first what goes where, then the painting.

_COUNTS = (0.30, 0.28, 0.20, 0.13, 0.09)  # how often a scene has 1, 2, 3, 4, 5 digits

_HEIGHTS = (0.16, 0.62)  # of a digit, in parts of the scene's shorter side

_CUT = 0.1  # how often the border cuts a digit

_CROWDED = 0.25  # how often a digit may cover others

_OUTSIDE = 0.3  # the part of a digit that may lie outside

_TINY = 0.2  # lower than this part of the shorter side: difficult

_HIDDEN = 0.6  # less than this part of its ink to be seen: difficult

_LOST = 0.35  # less than this: not placed at all


@dataclass(frozen=True)
class PlacedDigit:
    """A digit in its scene.

    Attributes:
        ink: (H, W) float64 in 0..1, how much of it covers each pixel of the scene.
        total: Its ink, counting what lies outside the scene.
        height: Pixels, counting what lies outside.
        label: 0..9.
    """

    ink: np.ndarray
    total: float
    height: int
    label: int

    def box(self) -> tuple[int, int, int, int]:
        """Return the xyxy pixels that hold the ink inside the scene, 0-based and half-open."""
        rows, columns = (np.flatnonzero((self.ink > 0.5).any(axis=axis)) for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def truncated(self) -> bool:
        """Return whether the scene's border cuts it."""
        return bool(self.ink.sum() < 0.97 * self.total)


def make_scene(
    digits: Digits, photographs: list[np.ndarray], size: tuple[int, int], rng: np.random.Generator, name: str
) -> AnnotatedImage:
    """Return one scene with its annotation.

    Args:
        digits: To choose from.
        photographs: To cut the background from.
        size: ``(height, width)``, pixels.
        rng: Decides everything.
        name: The scene's id.
    """
    placed = place_digits(digits, size, rng)
    pixels = paint(placed, cut_backdrop(photographs, size, rng), rng)
    boxes = torch.tensor([digit.box() for digit in placed], dtype=torch.float64)
    seen = _seen(placed)
    difficult = [
        part < _HIDDEN or digit.height < _TINY * min(size) for digit, part in zip(placed, seen, strict=True)
    ]
    return AnnotatedImage(
        image=torch.from_numpy(pixels.round().astype(np.uint8)).permute(2, 0, 1).contiguous(),
        boxes=boxes.reshape(-1, 4),
        classes=torch.tensor([digit.label + 1 for digit in placed]),
        difficult=torch.tensor(difficult),
        truncated=torch.tensor([digit.truncated() for digit in placed]),
        id=name,
    )


def place_digits(digits: Digits, size: tuple[int, int], rng: np.random.Generator) -> list[PlacedDigit]:
    """Choose one to five digits and their places; later ones cover earlier ones, none is lost.

    Args:
        digits: To choose from.
        size: ``(height, width)`` of the scene, pixels.
        rng: Decides everything.
    """
    placed: list[PlacedDigit] = []
    for _ in range(1 + rng.choice(len(_COUNTS), p=_COUNTS)):
        number = rng.integers(len(digits.labels))
        height = round(min(size) * float(np.exp(rng.uniform(*np.log(_HEIGHTS)))))
        drawn = draw_digit(digits.images[number], height, rng)
        cut, crowded = rng.random() < _CUT, rng.random() < _CROWDED
        for _ in range(20):
            ink = _put(drawn, size, rng, reach=_OUTSIDE if cut else 0.0)
            digit = PlacedDigit(ink, float(drawn.sum()), height, int(digits.labels[number]))
            if digit.truncated() == cut and min(_seen([*placed, digit])) >= (_LOST if cut or crowded else 0.9):
                placed.append(digit)
                break
    return placed or place_digits(digits, size, rng)


def paint(placed: list[PlacedDigit], background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint digits over a background, each in a shaded color brighter than what it lies on.

    Args:
        placed: In the order of painting.
        background: (H, W, 3) in 0..255.
        rng: Decides the colors.

    Returns:
        (H, W, 3) float64 in 0..255.
    """
    pixels = background
    shade = np.linspace(-1, 1, background.shape[0])[:, None, None]
    for digit in placed:
        xmin, ymin, xmax, ymax = digit.box()
        color = brighter_color(pixels[ymin:ymax, xmin:xmax], rng) + shade * rng.uniform(-20, 20)
        cover = digit.ink[:, :, None]
        pixels = pixels * (1 - cover) + color * cover
    return (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255)


def _put(drawn: np.ndarray, size: tuple[int, int], rng: np.random.Generator, reach: float) -> np.ndarray:
    """Return ``drawn`` somewhere in an empty scene, reaching out of it by at most ``reach`` of itself."""
    margin = max(drawn.shape)
    scene = np.zeros((size[0] + 2 * margin, size[1] + 2 * margin))
    top, left = (
        margin + int(rng.integers(-int(reach * own), max(full - own + int(reach * own), 0) + 1))
        for full, own in zip(size, drawn.shape, strict=True)
    )
    scene[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return scene[margin:-margin, margin:-margin]


def _seen(placed: list[PlacedDigit]) -> list[float]:
    """Return the part of each digit's ink that is inside the scene and not painted over."""
    seen: list[float] = []
    clear = np.ones(1)
    for digit in reversed(placed):
        seen.append(float((digit.ink * clear).sum()) / digit.total)
        clear = clear * (1 - digit.ink)
    return seen[::-1]


# The demo's source task: single digits, each filling its picture.


def demo_source_digits(seed: int = 13, *, num_images: int = 6000, size: int = 32) -> tuple[Tensor, Tensor]:
    """Return pictures of single digits on textured backgrounds.

    They are drawn from the same two thirds of the handwritten digits as the training scenes of
    :func:`write_demo_devkit` for the same seed, so that the test scenes' digits are new to everything trained.

    Args:
        seed: Decides everything.
        num_images: N.
        size: S, the side of a picture in pixels.

    Returns:
        ``(images, labels)``: (N, 3, S, S) uint8 RGB, and (N,) int64 in 0..9, each class equally often.
    """
    digits, _ = load_digits(seed)
    photographs = load_photographs()
    rng = np.random.default_rng([seed, 1])
    images = np.empty((num_images, size, size, 3), dtype=np.uint8)
    labels = np.arange(num_images) % 10
    for row, label in enumerate(labels):
        number = rng.choice(np.flatnonzero(digits.labels == label))
        drawn = draw_digit(digits.images[number], round(size * rng.uniform(0.5, 0.95)), rng)[:, :size]
        top, left = (int(rng.integers(0, size - own + 1)) for own in drawn.shape)
        ink = np.zeros((size, size))
        ink[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
        digit = PlacedDigit(ink, float(drawn.sum()), drawn.shape[0], int(label))
        images[row] = paint([digit], cut_backdrop(photographs, (size, size), rng), rng).round()
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


# The demo's target task, as a VOCdevkit: scenes of digits for training and for the test.

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
    try:
        with faults_named(target):
            for image_set, digits, numbers in (
                ("trainval", train, range(1, num_train + 1)),
                ("test", test, range(num_train + 1, num_train + num_test + 1)),
            ):
                scenes = track(numbers, progress, description=f"write {image_set}", unit="scene")
                write_voc_images(partial, image_set, _scenes(digits, scenes, image_size, seed), DEMO_CLASSES)
            (partial / _SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
            return partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _scenes(
    digits: Digits, numbers: Iterable[int], image_size: tuple[int, int], seed: int
) -> Iterator[AnnotatedImage]:
    photographs = load_photographs()
    for number in numbers:
        size = image_size[::-1] if number % 3 == 0 else image_size
        yield make_scene(digits, photographs, size, np.random.default_rng([seed, 2, number]), f"{number:06d}")
