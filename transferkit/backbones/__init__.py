"""Backbones: a pretrained network of any library, cut at any layer, with the preprocessing that it expects."""

from transferkit.backbones.fold import fold_batch_norms
from transferkit.backbones.surgery import features_of, logits_of
from transferkit.backbones.truncation import Truncated, truncate
from transferkit.preprocessing import FoundPreprocessing, find_preprocessing

__all__ = [
    "FoundPreprocessing",
    "Truncated",
    "features_of",
    "find_preprocessing",
    "fold_batch_norms",
    "logits_of",
    "truncate",
]
