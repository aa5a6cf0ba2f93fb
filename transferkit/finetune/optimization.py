"""Build the optimizer and its schedule from a protocol's settings."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from transferkit.errors import ArgumentError
from transferkit.protocols import Optimization


def build_optimizer(parameters: Iterable[nn.Parameter], settings: Optimization) -> SGD:
    """Return SGD over those of ``parameters`` that require a gradient.

    Raises:
        ArgumentError: Every parameter is frozen, so training would change nothing.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ArgumentError("every parameter is frozen, so nothing would be trained; freeze fewer layers")
    return SGD(
        trainable,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        # One kernel for all parameters; the same numbers on CPU, where the plain loop is used.
        fused=all(parameter.is_cuda for parameter in trainable),
    )


def build_schedule(optimizer: SGD, settings: Optimization) -> LambdaLR:
    """Return the schedule, stepped once per epoch."""
    return LambdaLR(optimizer, settings.factor)
