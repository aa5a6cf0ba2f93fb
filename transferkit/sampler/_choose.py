"""One image's patches: laid, labeled and chosen, as a pure function of (seed, epoch, image)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL.Image import DecompressionBombError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transferkit.errors import ArgumentError, require
from transferkit.labeling import Rule, label_patches
from transferkit.sampler._source import PatchSource
from transferkit.sampler.balance import Balance
from transferkit.sampler.schedule import generator

# What data sets raise for a file that cannot be read or decoded; Pillow's plugins raise all of these.
BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, DecompressionBombError)


class ChosenPatches(NamedTuple):
    """What was chosen of an image, and what it can be made from.

    Attributes:
        image_index: The image's place in the data set.
        content: What the source makes minibatches from; for patches to be cut, the image, (3, H, W) uint8.
        boxes: (B, 4) float64 xyxy, pixels.
        labels: (B,) int64.
    """

    image_index: int
    content: Tensor
    boxes: Tensor
    labels: Tensor


class BadImage(NamedTuple):
    """An image that could not be used.

    Attributes:
        image_index: The image's place in the data set.
        problem: What is wrong with it.
    """

    image_index: int
    problem: str


@dataclass(frozen=True, eq=False)
class PatchChooser(Dataset["ChosenPatches | BadImage"]):
    """Decodes an image and chooses its patches; a data set of ``(epoch, image)``, for DataLoader's workers.

    Attributes:
        dataset: Of annotated images.
        source: Lays an image's patches.
        rule: Labels them.
        balance: Chooses among them.
        count: How many patches are wanted.
        seed: Of the choice.
    """

    dataset: Any
    source: PatchSource
    rule: Rule
    balance: Balance
    count: int | None
    seed: int

    def __post_init__(self) -> None:
        require(isinstance(self.rule, Rule), "rule", "a value with a method label(boxes, objects)", self.rule)
        require(callable(self.balance), "balance", "called as (labels, count, generator)", self.balance)

    def __getitem__(self, visit: tuple[int, int]) -> ChosenPatches | BadImage:
        epoch, index = visit
        try:
            item = self.dataset[index]
            boxes = self.source.patches(item)
            labels = self.labels(item, boxes)
        except BAD_IMAGE as error:
            return BadImage(index, f"{type(error).__name__}: {error}")
        chosen = self.balance(labels, self.count, generator(self.seed, epoch, index, "balance"))
        rows = _as_rows(chosen, len(labels), self.balance)
        return ChosenPatches(index, self.source.content(item, rows), boxes[rows], labels[rows])

    def labels(self, item: Any, boxes: Tensor) -> Tensor:
        """Return the labels, (P,), of an annotated image's patches."""
        return label_patches(
            boxes,
            item.boxes,
            item.classes,
            rule=self.rule,
            difficult=getattr(item, "difficult", None),
            truncated=getattr(item, "truncated", None),
        ).labels


def _as_rows(chosen: Any, patches: int, balance: Balance) -> Tensor:
    """Return what a balance chose, (B,) int64, or say what is wrong with it."""
    rows = torch.as_tensor(chosen)
    if rows.numel() == 0:
        return rows.reshape(0).long()
    counted = rows.ndim == 1 and rows.dtype in (torch.int64, torch.int32)
    if not counted or int(rows.min()) < 0 or int(rows.max()) >= patches:
        found = f"from {rows.min()} to {rows.max()}" if counted else f"{tuple(rows.shape)} {rows.dtype}"
        raise ArgumentError(
            f"balance must return the rows of patches, (B,) whole numbers from 0 to {patches - 1}, got {found} "
            f"from {balance!r}"
        )
    return rows.long()


# How many patches each image will give, found with as little work as possible.


def patch_counts(chooser: PatchChooser, num_workers: int = 0) -> Sequence[int]:
    """Return the number of patches that each image gives, (N,); 0 for an image that cannot be used.

    No image is touched where the balance always chooses the same number. None is looked at where the number
    follows from how many patches there are, and the source knows that. Otherwise every image is decoded and
    labeled once, by ``num_workers`` processes.
    """
    size = getattr(chooser.balance, "size", None)
    images = len(chooser.dataset)
    if size is not None and chooser.source.always_some:
        least, most = size(1, chooser.count), size(2**62, chooser.count)
        if least is not None and least == most:
            return [least] * images
        available = chooser.source.available(chooser.dataset)
        if least is not None and available is not None:
            return [size(patches, chooser.count) for patches in available]
    counted = DataLoader(
        _Counted(chooser), batch_size=None, num_workers=num_workers, generator=torch.Generator()
    )
    return [int(count) for count in counted]


@dataclass(frozen=True, eq=False)
class _Counted(Dataset[int]):
    chooser: PatchChooser

    def __len__(self) -> int:
        return len(self.chooser.dataset)

    def __getitem__(self, index: int) -> int:
        chosen = self.chooser[0, index]
        return 0 if isinstance(chosen, BadImage) else len(chosen.labels)
