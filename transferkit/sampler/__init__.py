"""Patches of images as minibatches: grids, sampling quotas, exact cropping, and the stream that joins them.

:class:`MultiscaleSampler` is all of it at once. :class:`PatchGrid`, :class:`Tiles`, :func:`coverage`, the balances
(which patches of an image are trained on: the sampling quota) and :func:`crop_and_resize` each work alone, on plain
tensors.

To read the code, follow ``multiscale``: ``schedule`` (which image comes when, by (seed, epoch)), ``_source``
(where patches lie and how they become pixels), ``regions`` (images that are read by region), ``_choose`` (one
image's patches, labeled and chosen by ``balance``), ``_workers`` (processes that do so ahead of the loop), ``stream``
(minibatches), ``crop`` (pixels, as ``_taps`` plans). ``draw`` makes a picture of it.
"""

from transferkit.annotated import AnnotatedImage
from transferkit.boxes import coverage
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
from transferkit.sampler.grid import NEON_SCALES, Grid, PatchGrid, Proposals, Tiles
from transferkit.sampler.multiscale import MultiscaleSampler
from transferkit.sampler.patch_transforms import ColorJitter, PatchTransform, RandomFlip
from transferkit.sampler.regions import ArrayReader, RegionReader
from transferkit.sampler.schedule import generator
from transferkit.sampler.stream import PatchBatch

__all__ = [
    "NEON_SCALES",
    "AllPatches",
    "AnnotatedImage",
    "ArrayReader",
    "BackgroundFraction",
    "Balance",
    "ClassBalanced",
    "ColorJitter",
    "Grid",
    "MultiscaleSampler",
    "PatchBatch",
    "PatchGrid",
    "PatchTransform",
    "PositivesFirst",
    "Proposals",
    "RandomFlip",
    "RandomSubset",
    "RegionReader",
    "Tiles",
    "coverage",
    "crop_and_resize",
    "draw_patches",
    "generator",
]
