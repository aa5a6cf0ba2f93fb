"""A trunk's features for the patches of an image: patch by patch, read from maps of the whole image, or kept on
disk.

:class:`PatchFeatures` computes them, :class:`FeatureCache` keeps those of a whole data set,
:class:`FeatureImages` computes them as they are needed; either is given to a sampler in place of the data set.
:func:`probe_geometry` works out how a network's map lies in its image.
"""

from transferkit.features.cache import FeatureCache
from transferkit.features.cache_size import CacheSize
from transferkit.features.from_cache import FeatureImages
from transferkit.features.geometry import AxisGeometry, MapGeometry, map_coordinates
from transferkit.features.levels import LevelPlan, plan_levels
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.pooling import split_pooling
from transferkit.features.probe import probe_geometry
from transferkit.features.read_map import read_map
from transferkit.features.split import SplitModel, UnsplittableError, split_at_head, split_frozen

__all__ = [
    "AxisGeometry",
    "CacheSize",
    "FeatureCache",
    "FeatureImages",
    "LevelPlan",
    "MapGeometry",
    "PatchFeatures",
    "SplitModel",
    "UnsplittableError",
    "map_coordinates",
    "plan_levels",
    "probe_geometry",
    "read_map",
    "split_at_head",
    "split_frozen",
    "split_pooling",
]
