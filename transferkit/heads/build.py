"""Heads for a new task, with the initialisation that their recipe names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from transferkit.errors import require


def linear_head(
    in_features: int,
    num_classes: int,
    *,
    weight_std: float = 0.01,
    bias: float = 0.0,
    device: torch.device | str | None = None,
) -> nn.Linear:
    """Build one linear layer.

    Args:
        in_features: Width of the features that come in.
        num_classes: K, background included where the recipe has one.
        weight_std: Standard deviation of the Gaussian that weights are drawn from.
        bias: Every bias starts here.
        device: Where the parameters live.

    Returns:
        A module (B, in_features) -> (B, num_classes) logits.

    Raises:
        ArgumentError: A width below 1 or a negative ``weight_std``.

    Example:
        >>> linear_head(1280, 21)
        Linear(in_features=1280, out_features=21, bias=True)
    """
    require(in_features >= 1, "in_features", "at least 1", in_features)
    require(num_classes >= 1, "num_classes", "at least 1", num_classes)
    require(weight_std >= 0, "weight_std", "zero or positive", weight_std)
    layer = nn.Linear(in_features, num_classes, device=device)
    nn.init.normal_(layer.weight, std=weight_std)
    nn.init.constant_(layer.bias, bias)
    return layer


def adaptation_head(
    in_features: int,
    num_classes: int,
    hidden: Sequence[int] = (4096,),
    drop_rate: float = 0.5,
    *,
    hidden_std: float = 0.005,
    hidden_bias: float = 0.1,
    weight_std: float = 0.01,
    bias: float = 0.0,
    device: torch.device | str | None = None,
) -> nn.Sequential:
    """Build the adaptation layers: for each hidden width Linear, ReLU, Dropout; then one Linear to the classes.

    The defaults are those of the neon recipe, biases of 0.1 included: they keep the new rectifiers alive at the
    start. A ``drop_rate`` of 0 leaves the dropout layers out.

    Args:
        in_features: Width of the features that come in, 4096 for AlexNet's fc7.
        num_classes: K, background included.
        hidden: Width of each hidden layer.
        drop_rate: Probability that dropout zeroes a hidden unit, in [0, 1).
        hidden_std: Standard deviation of the hidden layers' Gaussian weights.
        hidden_bias: Start of the hidden layers' biases.
        weight_std: Standard deviation of the last layer's Gaussian weights.
        bias: Start of the last layer's biases.
        device: Where the parameters live.

    Returns:
        A module (B, in_features) -> (B, num_classes) logits.

    Raises:
        ArgumentError: A width below 1, a negative standard deviation, or a ``drop_rate`` outside [0, 1).

    Example:
        >>> adaptation_head(4096, 21)
        Sequential(
          (0): Linear(in_features=4096, out_features=4096, bias=True)
          (1): ReLU(inplace=True)
          (2): Dropout(p=0.5, inplace=False)
          (3): Linear(in_features=4096, out_features=21, bias=True)
        )

    References:
        Oquab et al., "Learning and Transferring Mid-Level Image Representations using Convolutional Neural
        Networks", CVPR 2014, section 3.1.
    """
    require(0 <= drop_rate < 1, "drop_rate", "in [0, 1)", drop_rate)
    modules: list[nn.Module] = []
    for width in hidden:
        modules += [
            linear_head(in_features, width, weight_std=hidden_std, bias=hidden_bias, device=device),
            nn.ReLU(inplace=True),
        ]
        if drop_rate:
            modules.append(nn.Dropout(drop_rate))
        in_features = width
    modules.append(linear_head(in_features, num_classes, weight_std=weight_std, bias=bias, device=device))
    return nn.Sequential(*modules)
