"""Move what a trained network knows into a new one, and turn a network of single objects into one of scenes."""

from transferkit.checkpoints import Checkpoint, read_checkpoint, register_reader
from transferkit.errors import TransferKitError
from transferkit.heads import adaptation_head, linear_head, replace_head
from transferkit.labeling import OverlapRule, label_patches
from transferkit.layers import layers_of
from transferkit.protocols import NEON2016, OQUAB2014, RECOMMENDED
from transferkit.sampler import MultiscaleSampler, PatchGrid, crop_and_resize
from transferkit.scorer import ImageScorer, average_precision, evaluate
from transferkit.transfer import (
    WeightTransfer,
    after,
    before,
    by_index,
    by_kind,
    by_name,
    every,
    freeze,
    register_handler,
    transfer_layer,
    unfreeze,
)

__version__ = "0.1.0"

__all__ = [
    "NEON2016",
    "OQUAB2014",
    "RECOMMENDED",
    "Checkpoint",
    "ImageScorer",
    "MultiscaleSampler",
    "OverlapRule",
    "PatchGrid",
    "TransferKitError",
    "WeightTransfer",
    "adaptation_head",
    "after",
    "average_precision",
    "before",
    "by_index",
    "by_kind",
    "by_name",
    "crop_and_resize",
    "evaluate",
    "every",
    "freeze",
    "label_patches",
    "layers_of",
    "linear_head",
    "read_checkpoint",
    "register_handler",
    "register_reader",
    "replace_head",
    "transfer_layer",
    "unfreeze",
]
