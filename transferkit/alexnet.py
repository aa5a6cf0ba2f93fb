"""AlexNet, spelled as its published weights are (``features.0`` ... ``classifier.6``), at any size.

References:
    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["AlexNet"]


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers.

    With the defaults its state dict has the names and shapes of torchvision's ``alexnet``, so those weights fit.

    Args:
        num_classes: Outputs of the last layer.
        channels: Output channels of the five convolutions.
        hidden: Width of the two hidden fully connected layers.
        stem: Kernel size, stride and padding of the first convolution.
        pooled: Side of the feature map that the classifier sees, whatever the input's size.
        drop_rate: Dropout before each hidden layer.
        kaiming: Initialize weights by He et al. instead of torch's defaults. A narrow network without
            normalization then learns from the first steps on.

    Shape:
        Input (B, 3, H, W), normalized; H and W at least 63 by default. Output: logits (B, num_classes).

    Example:
        >>> AlexNet(num_classes=10, channels=(8, 8, 8, 8, 8), hidden=16)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        channels: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256),
        hidden: int = 4096,
        stem: tuple[int, int, int] = (11, 4, 2),
        pooled: int = 6,
        drop_rate: float = 0.5,
        kaiming: bool = False,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = channels
        kernel, stride, padding = stem
        self.features = nn.Sequential(
            nn.Conv2d(3, c1, kernel, stride, padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.classifier = nn.Sequential(
            nn.Dropout(drop_rate),
            nn.Linear(c5 * pooled * pooled, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_classes),
        )
        if kaiming:
            self.apply(_draw_as_he)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map normalized pixels (B, 3, H, W) to logits (B, num_classes)."""
        maps = self.avgpool(self.features(pixels))
        logits: Tensor = self.classifier(torch.flatten(maps, 1))
        return logits


def _draw_as_he(module: nn.Module) -> None:
    """Draw a layer's weights from N(0, 2 / fan_in), biases 0 (He et al., ICCV 2015, section 2.2)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
