"""A checkpoint onto a network that was written by somebody else: no name is the same, and every layer is.

    python examples/move_weights.py

Which layer serves which is told by the shapes of all layers in their order. What that leaves open is an error that
names the candidates, never a guess. The program ends by comparing what the two networks compute. It printed

    theirs.pth -> Sequential, mapped by structure
    moved 42 of 42 tensors (100.0%), 29,015 of 29,015 elements (100.0%)
    42 copied, 2 skipped, 2 unexpected
    ~by_name('3') matches 14 layers
    by_name('3') matches 1 layer
    copied      0.0.0             weight [16, 3, 7, 7]         conv1
    copied      0.0.1             weight [16], bias [16], ...  bn1
    copied      0.2.body.0.0      weight [24, 16, 3, 3]        layer1.conv1
    copied      0.2.body.{0,2}.1  weight [24], bias [24], ...  layer1.bn{1-2}
    copied      0.2.body.2.0      weight [24, 24, 3, 3]        layer1.conv2
    copied      0.2.shortcut.0    weight [24, 16, 1, 1]        layer1.downsample.0
    copied      0.2.shortcut.1    weight [24], bias [24], ...  layer1.downsample.1
    copied      0.3.body.0.0      weight [32, 24, 3, 3]        layer2.conv1
    copied      0.3.body.{0,2}.1  weight [32], bias [32], ...  layer2.bn{1-2}
    copied      0.3.body.2.0      weight [32, 32, 3, 3]        layer2.conv2
    copied      0.3.shortcut.0    weight [32, 24, 1, 1]        layer2.downsample.0
    copied      0.3.shortcut.1    weight [32], bias [32], ...  layer2.downsample.1
    skipped     3                 weight [21, 32], bias [21]   not selected
    unexpected  fc                weight [1000, 32], bias [1000]
    42 tensors moved; largest difference of the features: 0
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import transferkit as tk


class TheirBlock(nn.Module):
    """A residual block as the author of the checkpoint spelled it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's change to its shortcut."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.downsample(x)).relu()


class Theirs(nn.Module):
    """The network that the checkpoint was saved from, with a head for 1000 classes."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = TheirBlock(16, 24, 1)
        self.layer2 = TheirBlock(24, 32, 2)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) to logits."""
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.fc(x.mean(dim=(2, 3)))


def unit(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution and its norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class Stage(nn.Module):
    """The same block as we would write it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(inputs, outputs, 3, stride), nn.ReLU(), unit(outputs, outputs, 3))
        self.shortcut = unit(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's change to its shortcut."""
        return (self.body(x) + self.shortcut(x)).relu()


def ours(num_classes: int) -> nn.Sequential:
    """Return the same network in other words."""
    backbone = nn.Sequential(unit(3, 16, 7, 2), nn.ReLU(), Stage(16, 24, 1), Stage(24, 32, 2))
    return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))


def main() -> None:
    """Save a checkpoint, show the plan, carry it out, and compare."""
    torch.manual_seed(0)
    theirs, mine = Theirs(), ours(num_classes=21)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.pth"
        torch.save({"epoch": 90, "state_dict": theirs.state_dict()}, path)
        transfer = tk.WeightTransfer(path, select=~tk.by_name("3"), mapping="structure")
        print(str(transfer.plan(mine)).replace(f"{folder}/", ""))  # nothing is written yet
        report = transfer.apply(mine)

    pictures = torch.randn(2, 3, 64, 64)
    features = nn.Sequential(*list(mine)[:-1]).eval()  # all but the head, which is new
    theirs.fc = nn.Identity()
    difference = (features(pictures) - theirs.eval()(pictures)).abs().max().item()
    print(f"{len(report.copied)} tensors moved; largest difference of the features: {difference:g}")


if __name__ == "__main__":
    main()
