"""A trunk's features for the patches of an image: patch by patch, or read from maps of the whole image.

:class:`PatchFeatures` is the interface; :func:`probe_geometry` works out how a network's map lies in its image.
"""

from transferkit.features.geometry import AxisGeometry, MapGeometry, map_coordinates
from transferkit.features.levels import LevelPlan, plan_levels
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.pooling import split_pooling
from transferkit.features.probe import probe_geometry
from transferkit.features.read_map import read_map

__all__ = [
    "AxisGeometry",
    "LevelPlan",
    "MapGeometry",
    "PatchFeatures",
    "map_coordinates",
    "plan_levels",
    "probe_geometry",
    "read_map",
    "split_pooling",
]
