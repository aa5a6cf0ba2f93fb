"""A backbone's features for the patches of an image: computed patch by patch, or read from maps of the whole image.

:class:`PatchFeatures` computes them, :class:`FeatureCache` keeps those of a whole data set on disk,
:class:`FeatureImages` computes them when they are needed; either is given to a sampler in place of the data set.

To read the code: ``patch_features``, ``shared`` (pyramid scales, and reading maps), ``cache`` over ``shards``
(files), ``_photos`` (which photo is which), ``_identity`` (which network) and ``contents`` (what a folder holds).
``backbones`` splits networks and finds their geometry.
"""

from transferkit.backbones.geometry import AxisGeometry, MapGeometry, map_coordinates, probe_geometry
from transferkit.backbones.split import (
    SplitModel,
    UnsplittableError,
    split_at_head,
    split_frozen,
    split_pooling,
)
from transferkit.features.cache import FeatureCache
from transferkit.features.contents import CacheContents, CacheSize, cache_contents, join_caches
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.shards import FeatureImages
from transferkit.features.shared import PyramidPlan, plan_pyramid, read_map

__all__ = [
    "AxisGeometry",
    "CacheContents",
    "CacheSize",
    "FeatureCache",
    "FeatureImages",
    "MapGeometry",
    "PatchFeatures",
    "PyramidPlan",
    "SplitModel",
    "UnsplittableError",
    "cache_contents",
    "join_caches",
    "map_coordinates",
    "plan_pyramid",
    "probe_geometry",
    "read_map",
    "split_at_head",
    "split_frozen",
    "split_pooling",
]
