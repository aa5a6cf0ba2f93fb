"""Scenes of several handwritten digits: first what goes where, then the painting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from transferkit.datasets.demo.backdrop import brighter_colour, cut_backdrop
from transferkit.datasets.demo.ink import Digits, draw_digit
from transferkit.sampler.item import AnnotatedImage

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
    """Paint digits over a background, each in a shaded colour brighter than what it lies on.

    Args:
        placed: In the order of painting.
        background: (H, W, 3) in 0..255.
        rng: Decides the colours.

    Returns:
        (H, W, 3) float64 in 0..255.
    """
    pixels = background
    shade = np.linspace(-1, 1, background.shape[0])[:, None, None]
    for digit in placed:
        xmin, ymin, xmax, ymax = digit.box()
        colour = brighter_colour(pixels[ymin:ymax, xmin:xmax], rng) + shade * rng.uniform(-20, 20)
        cover = digit.ink[:, :, None]
        pixels = pixels * (1 - cover) + colour * cover
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
