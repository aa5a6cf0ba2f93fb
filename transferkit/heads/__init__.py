"""Heads: build the layers that a new task needs (``build``, ``pooling``), find and replace the head of any model
(``find``), and the losses that a head is trained with (``losses``).
"""

from transferkit.heads.build import (
    CosineLinear,
    GeM,
    PerPosition,
    PyramidPool,
    adaptation_head,
    cosine_head,
    linear_head,
    spatial_pooling,
)
from transferkit.heads.find import Head, find_head, replace_head
from transferkit.heads.losses import (
    MULTI_LABEL,
    SINGLE_LABEL,
    ImageLoss,
    MultiLabel,
    Objective,
    SingleLabel,
    log_generalized_mean,
)

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
