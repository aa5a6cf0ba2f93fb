"""What scikit-learn's methods answer, from the logits of a head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transferkit.heads import MultiLabel, Objective


def decision(logits: NDArray[Any], several: bool) -> NDArray[Any]:
    """Return what ``decision_function`` answers.

    Args:
        logits: (N, K).
        several: Whether a row may show several classes.

    Returns:
        (N, K); for two exclusive classes (N,), positive where the second is more likely.
    """
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 and not several else logits


def decided(logits: NDArray[Any], classes: NDArray[Any], several: bool) -> NDArray[Any]:
    """Return what ``predict`` answers: labels (N,), or 0 and 1 (N, K) where a row may show several classes."""
    labels: NDArray[Any] = (logits > 0).astype(np.int64) if several else classes[logits.argmax(axis=1)]
    return labels


def probabilities(logits: NDArray[Any], objective: Objective, several: bool) -> NDArray[Any]:
    """Return what ``predict_proba`` answers.

    Args:
        logits: (N, K).
        objective: What they were trained for.
        several: Whether a row may show several classes.

    Returns:
        (N, K); each row sums to 1 unless a row may show several classes. Exclusive classes that were trained each
        by itself share 1 in the ratio of their probabilities, as in scikit-learn's ``OneVsRestClassifier``.
    """
    probs: NDArray[Any] = objective.probs(torch.from_numpy(logits)).numpy()
    if isinstance(objective, MultiLabel) and not several:
        probs = probs / np.maximum(probs.sum(axis=1, keepdims=True), np.finfo(probs.dtype).tiny)
    return probs
