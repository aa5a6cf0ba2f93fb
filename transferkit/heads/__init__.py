"""Heads: build the layers that a new task needs, and find and replace the head of any model."""

from transferkit.heads.build import adaptation_head, linear_head
from transferkit.heads.cosine import CosineLinear, cosine_head
from transferkit.heads.find import Head, find_head
from transferkit.heads.image_loss import ImageLoss, log_generalized_mean
from transferkit.heads.objective import MULTI_LABEL, SINGLE_LABEL, MultiLabel, Objective, SingleLabel
from transferkit.heads.per_position import PerPosition
from transferkit.heads.pooling import GeM, PyramidPool, spatial_pooling
from transferkit.heads.replace import replace_head

__all__ = [
    "MULTI_LABEL",
    "SINGLE_LABEL",
    "CosineLinear",
    "GeM",
    "Head",
    "ImageLoss",
    "MultiLabel",
    "Objective",
    "PerPosition",
    "PyramidPool",
    "SingleLabel",
    "adaptation_head",
    "cosine_head",
    "find_head",
    "linear_head",
    "log_generalized_mean",
    "replace_head",
    "spatial_pooling",
]
