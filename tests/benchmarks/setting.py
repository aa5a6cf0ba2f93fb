"""What all ways of the feature benchmarks have in common: photos, patches, labels, backbone and head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import transferkit as tk
from transferkit.alexnet import AlexNet
from transferkit.datasets import VOCDataset
from transferkit.heads import adaptation_head
from transferkit.labeling import OverlapRule, label_patches
from transferkit.sampler import AnnotatedImage, PatchGrid, RandomSubset, generator
from transferkit.scorer import VOC2010

GRID = PatchGrid()
RULE = OverlapRule()
SEED = 13


class Part:
    """Some of a data set's photos, without a need to decode them for their sizes as ``Subset`` has."""

    def __init__(self, data: VOCDataset, start: int, stop: int) -> None:
        self.data, self.numbers = data, range(len(data))[start:stop]
        self.class_names = data.class_names

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self.data[self.numbers[index]]

    def image_size(self, index: int) -> tuple[int, int]:
        return self.data.image_size(self.numbers[index])


@dataclass(frozen=True)
class Photos:
    """Photos with all patches of the recipe's grid.

    Attributes:
        data: As a data set.
        paths: (N) files.
        boxes: N times (P, 4) xyxy, pixels.
        labels: N times (P,) classes, 0 for background.
    """

    data: VOCDataset | Part
    paths: list[Path]
    boxes: list[Tensor]
    labels: list[Tensor]

    @classmethod
    def read(cls, folder: Path, image_set: str, count: int | None) -> Photos:
        """Return the first ``count`` photos of an image set."""
        data = VOCDataset(folder, image_set=image_set, max_images=count)
        boxes = [GRID(data.image_size(index)) for index in range(len(data))]
        items = (data[index] for index in range(len(data)))
        labels = [
            label_patches(mine, item.boxes, item.classes, rule=RULE).labels
            for mine, item in zip(boxes, items, strict=True)
        ]
        paths = [data.folder / "JPEGImages" / f"{image_id}.jpg" for image_id in data.ids]
        return cls(data, paths, boxes, labels)

    def random_subset(self, count: int) -> Photos:
        """Return the photos with ``count`` random patches each: those that the sampler chooses at test."""
        rows = [
            RandomSubset()(labels, count, generator(SEED, 0, index, "balance"))
            for index, labels in enumerate(self.labels)
        ]
        boxes, labels = (
            [parts[r] for parts, r in zip(every, rows, strict=True)] for every in (self.boxes, self.labels)
        )
        return Photos(self.data, self.paths, boxes, labels)

    def part(self, start: int, stop: int) -> Photos:
        """Return the photos from ``start`` to before ``stop``, numbered anew."""
        some = slice(start, stop)
        return Photos(Part(self.data, start, stop), self.paths[some], self.boxes[some], self.labels[some])


def load_backbone(weights: Path) -> nn.Sequential:
    """Return AlexNet's convolutions, frozen, and a pooling: (B, 3, 224, 224) to (B, 256, 3, 3); fastest channels last."""
    model = AlexNet(hidden=1)
    tk.WeightTransfer(tk.read_checkpoint(weights), select=tk.by_name("features.*")).apply(model)
    backbone = nn.Sequential(*model.features, nn.AdaptiveAvgPool2d(3))
    return backbone.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def new_head(num_classes: int, seed: int = SEED) -> nn.Sequential:
    """Return the head that is trained: (B, 256, 3, 3) through one hidden layer of 1,024 to logits (B, K)."""
    torch.manual_seed(seed)
    head = adaptation_head(256 * 9, num_classes, hidden=(1024,), drop_rate=0.5)
    return nn.Sequential(nn.Flatten(), *head)


def new_optimizer(head: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of the head."""
    return torch.optim.SGD(head.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)


def mean_ap(scores: Tensor, data: VOCDataset) -> float:
    """Return the mean AP in percent, all-points, difficult objects ignored."""
    truth = data.presence()
    return 100 * float(VOC2010.average_precision(scores, truth.present, truth.difficult_only).nanmean())
