"""Textured backgrounds cut from real photographs, and brighter colours to stand out from them."""

from __future__ import annotations

import numpy as np
from PIL import Image

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


def brighter_colour(background: np.ndarray, rng: np.random.Generator, distance: float = 70.0) -> np.ndarray:
    """Return a random colour that is brighter than the background's mean by at least ``distance``.

    Always brighter: learning that dark on bright is the same digit took a small network twice as long.

    Args:
        background: (..., 3) in 0..255.
        rng: Decides the colour.
        distance: In grey levels; less where the background leaves less.

    Returns:
        (3,) float64 in 0..255.
    """
    light = float(background.reshape(-1, 3).mean(axis=0) @ _LUMA)
    while True:
        colour = rng.uniform(0, 255, 3)
        if float(colour @ _LUMA) >= min(light + distance, 230):
            return colour
