"""Backbones: a trained network up to any of its layers, whoever wrote it, and what it wants for input."""

from transferkit.backbones.fold import fold_batch_norms
from transferkit.backbones.outputs import features_of, logits_of
from transferkit.backbones.preprocessing import FoundPreprocessing, find_preprocessing
from transferkit.backbones.truncate import Truncated, truncate

__all__ = [
    "FoundPreprocessing",
    "Truncated",
    "features_of",
    "find_preprocessing",
    "fold_batch_norms",
    "logits_of",
    "truncate",
]
