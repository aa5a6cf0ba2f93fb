"""The demo's source task: single digits, each filling its picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from transferkit.datasets.demo.backdrop import cut_backdrop, load_photographs
from transferkit.datasets.demo.ink import draw_digit, load_digits
from transferkit.datasets.demo.scene import PlacedDigit, paint


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
