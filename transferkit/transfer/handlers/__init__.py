"""Handlers convert one source layer into tensors that fit one target layer; other packages may add theirs."""

from transferkit.transfer.handlers.cast import cast
from transferkit.transfer.handlers.class_rows import ClassRows
from transferkit.transfer.handlers.fold_batch_norm import FoldBatchNorm
from transferkit.transfer.handlers.input_channels import InputChannels
from transferkit.transfer.handlers.kernels import InflateKernel, ResizeKernel
from transferkit.transfer.handlers.parametrizations import parametrizations
from transferkit.transfer.handlers.position_embeddings import PositionEmbeddings
from transferkit.transfer.handlers.registry import (
    Handler,
    automatic_handlers,
    find_handler,
    handler_names,
    register_handler,
    unregister_handler,
)
from transferkit.transfer.handlers.slices import slices

__all__ = [
    "ClassRows",
    "FoldBatchNorm",
    "Handler",
    "InflateKernel",
    "InputChannels",
    "PositionEmbeddings",
    "ResizeKernel",
    "automatic_handlers",
    "cast",
    "find_handler",
    "handler_names",
    "parametrizations",
    "register_handler",
    "slices",
    "unregister_handler",
]
