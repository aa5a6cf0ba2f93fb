"""A model in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients; leave each of its modules as it was.

    Example:
        >>> net = nn.Sequential(nn.Dropout())
        >>> with evaluating(net):
        ...     print(net[0].training)
        False
        >>> net[0].training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
