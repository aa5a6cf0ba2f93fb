"""Patches of images as minibatches: grids, balance, cutting, and the stream that joins them."""

from transferkit.sampler.grid import NEON_SCALES, PatchGrid

__all__ = ["NEON_SCALES", "PatchGrid"]
