"""Handwritten digits: a split into two halves that share none, and one digit drawn at any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

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
