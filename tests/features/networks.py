"""Backbones of every kind that is told apart: plain, deep, padded by size, and those that see the whole image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def vgg16() -> nn.Sequential:
    """VGG16's convolutions up to the last pooling, with few channels: geometry does not depend on how many."""
    modules: list[nn.Module] = []
    channels = 3
    for block in ((4, 4), (4, 4), (8, 8, 8), (8, 8, 8), (8, 8, 8)):
        if modules:
            modules.append(nn.MaxPool2d(2))
        for width in block:
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*modules)


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1),
        )
        self.short = nn.Conv2d(before, after, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.body(maps) + self.short(maps))


def resnet18_stages(stages: int = 4) -> nn.Sequential:
    """ResNet-18's stem and stages, with few channels."""
    blocks: list[nn.Module] = [nn.Conv2d(3, 4, 7, 2, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage in range(stages):
        blocks += [Residual(4, 4, 1 if stage == 0 else 2), Residual(4, 4, 1)]
    return nn.Sequential(*blocks)


class SamePadding(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does: by the size of what it is given, more at the end."""

    def forward(self, maps: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(
            maps.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(maps, pads), self.weight, self.bias, self.stride)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.gate(maps.mean(dim=(2, 3), keepdim=True)).sigmoid()


class Transformer(nn.Module):
    """Patches of 16 pixels that all attend to each other; with ``positions``, of one image size only."""

    def __init__(self, positions: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 16, 16)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.positions = None if positions is None else nn.Parameter(torch.zeros(1, positions, 8))

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.embed(pixels)
        tokens = maps.flatten(2).mT
        if self.positions is not None:
            tokens = tokens + self.positions
        return self.attend(tokens).mT.view_as(maps)
