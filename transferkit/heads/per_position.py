"""A head over vectors, applied at every position of a map."""

from __future__ import annotations

from torch import Tensor, nn


class PerPosition(nn.Module):
    """Apply a head of linear layers along the channels of a map, as convolutions of one cell would.

    Args:
        head: Maps (..., C) to (..., K).

    Shape:
        Input (B, C, H, W), output (B, K, H, W).

    Example:
        >>> import torch
        >>> PerPosition(nn.Linear(8, 3))(torch.zeros(2, 8, 5, 4)).shape
        torch.Size([2, 3, 5, 4])
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, K, H, W)."""
        logits: Tensor = self.head(maps.permute(0, 2, 3, 1))  # (B, H, W, K)
        return logits.permute(0, 3, 1, 2)
