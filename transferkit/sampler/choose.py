"""One image's patches: laid, labelled and chosen, as a pure function of (seed, epoch, image)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL.Image import DecompressionBombError
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.boxes import as_boxes
from transferkit.errors import ArgumentError, DataError, require
from transferkit.labeling import Rule, label_patches
from transferkit.sampler.balance import Balance
from transferkit.sampler.grid import PatchGrid
from transferkit.sampler.randomness import generator

Proposals = Callable[[Any], Tensor]
"""Takes an annotated image and returns (P, 4) boxes, xyxy, pixels."""

# What data sets raise for a file that cannot be read or decoded; Pillow's plugins raise all of these.
_BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, DecompressionBombError)


class ChosenPatches(NamedTuple):
    """An image and what is to be cut from it.

    Attributes:
        image_index: The image's place in the data set.
        image: (3, H, W) uint8.
        boxes: (B, 4) float64 xyxy, pixels.
        labels: (B,) int64.
    """

    image_index: int
    image: Tensor
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
        grid: Lays patches by the image's size; ``None`` for none.
        proposals: Gives patches, or more patches; ``None`` for none.
        rule: Labels them.
        balance: Chooses among them.
        count: How many patches are wanted.
        seed: Of the choice.
    """

    dataset: Any
    grid: PatchGrid | None
    proposals: Proposals | None
    rule: Rule
    balance: Balance
    count: int | None
    seed: int

    def __post_init__(self) -> None:
        require(isinstance(self.rule, Rule), "rule", "a value with a method label(boxes, objects)", self.rule)
        require(callable(self.balance), "balance", "called as (labels, count, generator)", self.balance)
        proposals = self.proposals
        require(
            proposals is None or callable(proposals), "proposals", "called with an item, or None", proposals
        )

    def __getitem__(self, visit: tuple[int, int]) -> ChosenPatches | BadImage:
        epoch, index = visit
        try:
            item = self.dataset[index]
            check_item(item)
            boxes = self.patches(item)
            labels = self.labels(item, boxes)
        except _BAD_IMAGE as error:
            return BadImage(index, f"{type(error).__name__}: {error}")
        chosen = self.balance(labels, self.count, generator(self.seed, epoch, index, "balance"))
        rows = _as_rows(chosen, len(labels), self.balance)
        return ChosenPatches(index, item.image, boxes[rows], labels[rows])

    def patches(self, item: Any) -> Tensor:
        """Return all patches of an annotated image, (P, 4) float64, those of the grid before the proposals."""
        height, width = item.image.shape[-2:]
        parts = []
        if self.grid is not None:
            parts.append(self.grid((height, width)))
        if self.proposals is not None:
            proposed = as_boxes(torch.as_tensor(self.proposals(item)), "proposals").double().cpu()
            if len(proposed) and (
                (proposed < 0).any() or (proposed.amax(0) > torch.tensor([width, height] * 2)).any()
            ):
                raise DataError(f"proposals must lie inside the image, {width} wide and {height} high")
            parts.append(proposed)
        return torch.cat(parts)

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


def check_item(item: Any) -> None:
    """Raise unless ``item`` has the attributes and the kind of image that the sampler needs."""
    missing = [name for name in ("image", "boxes", "classes") if not hasattr(item, name)]
    if missing:
        raise DataError(
            f"a data set's items must have image, boxes and classes, this {type(item).__name__} has no "
            f"{' and no '.join(missing)}; an adapter in transferkit.datasets may help"
        )
    image = item.image
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"image must be a (3, H, W) uint8 tensor, got {found}")
    for name in ("boxes", "classes"):
        column = getattr(item, name)
        if not isinstance(column, Tensor):
            raise DataError(f"{name} must be a tensor, got {type(column).__name__}: wrap it in torch.as_tensor")
