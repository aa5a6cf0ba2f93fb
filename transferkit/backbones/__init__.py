"""Backbones: a pretrained network of any library, cut at any layer, with the preprocessing that it expects.

To read the code: ``truncation`` (up to a layer), ``split`` (backbone, pooling and the part to train), ``geometry``
(where a map's cells lie), ``fold`` (batch norms), all over ``surgery`` (copies with submodules replaced).
"""

from transferkit.backbones.fold import fold_batch_norms
from transferkit.backbones.geometry import AxisGeometry, MapGeometry, map_coordinates, probe_geometry
from transferkit.backbones.split import (
    SplitModel,
    UnsplittableError,
    split_at_head,
    split_frozen,
    split_pooling,
)
from transferkit.backbones.surgery import features_of, logits_of
from transferkit.backbones.truncation import Truncated, truncate
from transferkit.preprocessing import FoundPreprocessing, find_preprocessing

__all__ = [
    "AxisGeometry",
    "FoundPreprocessing",
    "MapGeometry",
    "SplitModel",
    "Truncated",
    "UnsplittableError",
    "features_of",
    "find_preprocessing",
    "fold_batch_norms",
    "logits_of",
    "map_coordinates",
    "probe_geometry",
    "split_at_head",
    "split_frozen",
    "split_pooling",
    "truncate",
]
