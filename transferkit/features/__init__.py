"""A backbone's features for the patches of an image: patch by patch, read from maps of the whole image, or kept on
disk.

:class:`PatchFeatures` computes them, :class:`FeatureCache` keeps those of a whole data set,
:class:`FeatureImages` computes them as they are needed; either is given to a sampler in place of the data set.
:func:`probe_geometry` works out how a network's map lies in its image.
"""

from transferkit.backbones.geometry import AxisGeometry, MapGeometry, map_coordinates, probe_geometry
from transferkit.backbones.split import (
    SplitModel,
    UnsplittableError,
    split_at_head,
    split_frozen,
    split_pooling,
)
from transferkit.features.cache import CacheSize, FeatureCache
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.shards import FeatureImages
from transferkit.features.shared import PyramidPlan, plan_pyramid, read_map

__all__ = [
    "AxisGeometry",
    "CacheSize",
    "FeatureCache",
    "FeatureImages",
    "MapGeometry",
    "PatchFeatures",
    "PyramidPlan",
    "SplitModel",
    "UnsplittableError",
    "map_coordinates",
    "plan_pyramid",
    "probe_geometry",
    "read_map",
    "split_at_head",
    "split_frozen",
    "split_pooling",
]
