"""Small pictures with objects in them, and a small backbone."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from transferkit.features import PatchFeatures
from transferkit.preprocessing import IMAGENET
from transferkit.sampler import AnnotatedImage, PatchGrid

SIDE = 32
GRID = PatchGrid(scales=(1, 1.6, 2), target=None)


class Scenes:
    """Pictures of several sizes; one may be broken, one may be changed."""

    class_names = ("background", "red", "green")

    def __init__(self, count: int = 5, *, broken: int | None = None, changed: int | None = None) -> None:
        self.count, self.broken, self.changed = count, broken, changed
        self.decoded = 0

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(f"scene {index}" for index in range(self.count))

    def image_size(self, index: int) -> tuple[int, int]:
        return 48 + 4 * (index % 8), 80 - 4 * (index % 8)

    def fingerprint(self, index: int) -> str:
        return hashlib.blake2b(self._pixels(index).numpy().tobytes()).hexdigest()

    def __getitem__(self, index: int) -> AnnotatedImage:
        if index == self.broken:
            raise OSError("truncated file")
        self.decoded += 1
        height, width = self.image_size(index)
        boxes = torch.tensor(
            [[4.25, 4, 30, 30.5], [width - 30, height - 30, width, height]], dtype=torch.float64
        )
        flags = torch.tensor([False, index % 2 == 0])
        return AnnotatedImage(
            self._pixels(index),
            boxes,
            torch.tensor([1, 2]),
            flags,
            torch.tensor([True, False]),
            self.ids[index],
        )

    def _pixels(self, index: int) -> torch.Tensor:
        seed = index + 1000 * (index == self.changed)
        size = (3, *self.image_size(index))
        return torch.randint(256, size, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def backbone(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, 2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(6, 4, 3),
            nn.AvgPool2d(2),
        )


def features(seed: int = 0, **settings: object) -> PatchFeatures:
    return PatchFeatures(
        backbone(seed), **{"patch_size": SIDE, "preprocessing": IMAGENET, "batch_size": 16, **settings}
    )
