"""Handlers convert one source layer into tensors that fit one target layer; other packages may add theirs."""

from transferkit.transfer.handlers.attention import Fused, Tokens, reshape
from transferkit.transfer.handlers.convolutions import FoldBatchNorm, InflateKernel, InputChannels, ResizeKernel
from transferkit.transfer.handlers.plain import ClassRows, cast, parametrizations, slices
from transferkit.transfer.handlers.position_embeddings import PositionEmbeddings
from transferkit.transfer.handlers.registry import (
    Handler,
    automatic_handlers,
    find_handler,
    handler_names,
    register_handler,
    unregister_handler,
)

__all__ = [
    "ClassRows",
    "FoldBatchNorm",
    "Fused",
    "Handler",
    "InflateKernel",
    "InputChannels",
    "PositionEmbeddings",
    "ResizeKernel",
    "Tokens",
    "automatic_handlers",
    "cast",
    "find_handler",
    "handler_names",
    "parametrizations",
    "register_handler",
    "reshape",
    "slices",
    "unregister_handler",
]
