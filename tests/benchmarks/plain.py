"""The yardstick: the recipe as a competent user of PyTorch writes it, with PIL and a DataLoader.

Nothing of transferkit's sampler, features or loop is in here; it is given the patches' boxes and labels, so that both sides
work on the same patches. What makes it fast: photos are decoded and cut in workers, each patch by one ``resize(box=...)``
into a tensor whose memory is in the order that the network likes best (channels last) and that travels as bytes; the
frozen backbone runs without gradients, on whole minibatches; scoring runs in inference mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

SIDE = 224
BATCH = 64
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255

Choice = Callable[[Tensor], Tensor]
"""Takes the labels of a photo's patches and returns the rows to use."""


class Cut(NamedTuple):
    """What a worker makes of a photo.

    Attributes:
        index: The photo's number.
        rows: (P,) which of its patches these are.
        patches: (P, 3, S, S) uint8, channels last in memory.
        labels: (P,) classes, 0 for background.
    """

    index: int
    rows: Tensor
    patches: Tensor
    labels: Tensor


class PhotoPatches(Dataset[Cut]):
    """The patches of photos.

    Args:
        paths: (N) photos.
        boxes: N times (P, 4) xyxy, pixels: all patches of each photo.
        labels: N times (P,) their classes, 0 for background.
        choose: Which of them to give.
    """

    def __init__(
        self, paths: Sequence[Path], boxes: Sequence[Tensor], labels: Sequence[Tensor], choose: Choice
    ) -> None:
        self.paths, self.boxes, self.labels, self.choose = paths, boxes, labels, choose

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Cut:
        rows = self.choose(self.labels[index])
        patches = torch.empty(len(rows), SIDE, SIDE, 3, dtype=torch.uint8)
        with Image.open(self.paths[index]) as file:
            photo = file.convert("RGB")
        for patch, box in zip(patches.numpy(), self.boxes[index][rows].tolist(), strict=True):
            patch[...] = np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=tuple(box)))
        return Cut(index, rows, patches.permute(0, 3, 1, 2), self.labels[index][rows])


def every_patch(labels: Tensor) -> Tensor:
    """Choose all patches."""
    return torch.arange(len(labels))


def positives_first(labels: Tensor, count: int = 448) -> Tensor:
    """Choose all patches with an object and fill up with random background, ``count`` in all, in random order."""
    positive, background = (labels > 0).nonzero()[:count, 0], (labels == 0).nonzero()[:, 0]
    rows = torch.cat([positive, background[torch.randperm(len(background))]])
    rows = rows.repeat(-(-count // len(rows)))[:count]
    return rows[torch.randperm(count)]


def loader(data: PhotoPatches, workers: int = 2, *, shuffle: bool = False) -> DataLoader[Cut]:
    """Return a loader of photos; its workers live on from epoch to epoch."""
    return DataLoader(
        data, batch_size=None, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0
    )


def normalize(pixels: Tensor) -> Tensor:
    """Return pixels in 0..255 as the backbone wants them."""
    return pixels.float().sub_(MEAN).div_(STD)


@torch.inference_mode()
def score(backbone: nn.Module, head: nn.Module, photos: DataLoader[Cut], num_photos: int) -> Tensor:
    """Return the photos' scores, (N, K): the sum over their patches of probability^5."""
    head.eval()
    scores: list[Tensor] = [torch.empty(0)] * num_photos
    for index, _, patches, _ in photos:
        probs = torch.cat([head(backbone(normalize(batch))).softmax(dim=1) for batch in patches.split(BATCH)])
        scores[index] = probs.double().pow(5).sum(dim=0)
    return torch.stack(scores)


def train_epoch(
    backbone: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    photos: DataLoader[Cut],
    after_photo: Callable[[Cut, Tensor], object] = lambda photo, maps: None,
) -> None:
    """Train the head on one epoch of patches, in minibatches from one photo each.

    ``after_photo`` is told each photo and its patches' maps, (P, C, h, w).
    """
    head.train()
    for photo in photos:
        every = []
        for batch, truth in zip(photo.patches.split(BATCH), photo.labels.split(BATCH), strict=True):
            with torch.no_grad():
                maps = backbone(normalize(batch))
            loss = cross_entropy(head(maps), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            every.append(maps)
        after_photo(photo, torch.cat(every))
