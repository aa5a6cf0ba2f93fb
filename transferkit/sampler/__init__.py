"""Patches of images as minibatches: grids, balance, exact cutting, and the stream that joins them.

:class:`MultiscaleSampler` is all of it at once; :class:`PatchGrid`, the balances and :func:`crop_and_resize`
each work alone, on plain tensors.
"""

from transferkit.annotated import AnnotatedImage
from transferkit.sampler.balance import (
    AllPatches,
    BackgroundFraction,
    Balance,
    ClassBalanced,
    PositivesFirst,
    RandomSubset,
)
from transferkit.sampler.crop import crop_and_resize
from transferkit.sampler.draw import draw_patches
from transferkit.sampler.grid import NEON_SCALES, PatchGrid
from transferkit.sampler.multiscale import MultiscaleSampler
from transferkit.sampler.patch_transforms import ColorJitter, PatchTransform, RandomFlip
from transferkit.sampler.schedule import generator
from transferkit.sampler.stream import PatchBatch

__all__ = [
    "NEON_SCALES",
    "AllPatches",
    "AnnotatedImage",
    "BackgroundFraction",
    "Balance",
    "ClassBalanced",
    "ColorJitter",
    "MultiscaleSampler",
    "PatchBatch",
    "PatchGrid",
    "PatchTransform",
    "PositivesFirst",
    "RandomFlip",
    "RandomSubset",
    "crop_and_resize",
    "draw_patches",
    "generator",
]
