"""Features of mean 0 and variance 1, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Subtract a mean and divide by a spread, per feature.

    Args:
        mean: (D,).
        spread: (D,), positive.

    Example:
        >>> layer = Standardize.of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> layer(torch.tensor([[3.0, 6.0]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)

    @classmethod
    def of(cls, features: Tensor) -> Standardize:
        """Return the layer that brings these features (N, D) to mean 0 and variance 1; a constant one to 0."""
        mean = features.mean(dim=0)
        # Rounding leaves a constant feature a spread of its last digits, which must not be blown up to 1.
        spread = features.std(dim=0, correction=0)
        constant = spread <= 10 * torch.finfo(features.dtype).eps * mean.abs()
        return cls(mean, spread.masked_fill(constant, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Standardise (..., D)."""
        return (features - self.mean) / self.spread

    def extra_repr(self) -> str:
        """Return the number of features."""
        return f"{len(self.mean)}"
