"""Small tables of features with classes that can be told apart, and some that show several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def table(rows: int = 120, columns: int = 10, classes: int = 3, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Features (N, D) on very different scales and labels (N,)."""
    random = np.random.default_rng(seed)
    centers = 2 * random.standard_normal((classes, columns))
    labels = np.arange(rows) % classes
    return (centers[labels] + random.standard_normal((rows, columns))) * np.geomspace(0.1, 100, columns), labels


def indicators(rows: int = 120, columns: int = 10, classes: int = 4, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Features (N, D) and which classes each row shows (N, K)."""
    random = np.random.default_rng(seed)
    X = random.standard_normal((rows, columns))
    return X, (X @ random.standard_normal((columns, classes)) > 0).astype(float)
