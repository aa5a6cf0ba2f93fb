"""One image's patches: laid, labelled and chosen, as a pure function of (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.boxes import as_boxes
from transferkit.labeling import Rule, label_patches
from transferkit.sampler.balance import Balance
from transferkit.sampler.grid import PatchGrid
from transferkit.sampler.randomness import generator

Proposals = Callable[[Any], Tensor]
"""Takes an annotated image and returns (P, 4) boxes, xyxy, pixels."""


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


@dataclass(frozen=True, eq=False)
class PatchChooser(Dataset[ChosenPatches]):
    """Decodes an image and chooses its patches; a data set of ``(epoch, image)``, for DataLoader's workers.

    Attributes:
        dataset: Of annotated images.
        grid: Lays patches by the image's size; ``None`` for none.
        proposals: Gives patches, or more patches; ``None`` for none.
        rule: Labels them; ``None`` to label all as background, where labels are not wanted.
        balance: Chooses among them.
        count: How many patches are wanted.
        seed: Of the choice.
    """

    dataset: Any
    grid: PatchGrid | None
    proposals: Proposals | None
    rule: Rule | None
    balance: Balance
    count: int | None
    seed: int

    def __getitem__(self, visit: tuple[int, int]) -> ChosenPatches:
        epoch, index = visit
        item = self.dataset[index]
        boxes = self.patches(item)
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        if self.rule is not None:
            flags = {"difficult": item.difficult, "truncated": item.truncated}
            labels = label_patches(boxes, item.boxes, item.classes, rule=self.rule, **flags).labels
        rows = self.balance(labels, self.count, generator(self.seed, epoch, index, "balance"))
        return ChosenPatches(index, item.image, boxes[rows], labels[rows])

    def patches(self, item: Any) -> Tensor:
        """Return all patches of an annotated image, those of the grid before the proposals."""
        height, width = item.image.shape[-2:]
        parts = []
        if self.grid is not None:
            parts.append(self.grid((height, width)))
        if self.proposals is not None:
            parts.append(as_boxes(self.proposals(item), "proposals").double().cpu())
        return torch.cat(parts)
