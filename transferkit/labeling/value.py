"""What labeling takes and gives: the objects of an image, and the labels of its patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from transferkit.boxes import as_boxes
from transferkit.errors import ArgumentError

BACKGROUND = 0
"""The class of a patch without an object."""

IGNORE = -100
"""The label of a patch that is neither: losses skip it (it is the default ``ignore_index`` of torch)."""


class PatchLabels(NamedTuple):
    """The labels of P patches.

    Attributes:
        labels: (P,) int64: an object's class, 0 for background, or ``IGNORE``.
        matched: (P,) int64: the row of the object that gave the label, -1 where none did.
    """

    labels: Tensor
    matched: Tensor


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, checked.

    Attributes:
        boxes: (N, 4) xyxy, pixels.
        classes: (N,) int64 in 1..K-1.
        difficult: (N,) bool.
        truncated: (N,) bool.
    """

    boxes: Tensor
    classes: Tensor
    difficult: Tensor
    truncated: Tensor

    @staticmethod
    def of(
        boxes: Tensor, classes: Tensor, difficult: Tensor | None = None, truncated: Tensor | None = None
    ) -> Objects:
        """Check and complete the objects of an image.

        Args:
            boxes: (N, 4) xyxy, pixels.
            classes: (N,) whole numbers from 1.
            difficult: (N,) bool; ``None`` for none.
            truncated: (N,) bool; ``None`` for none.

        Raises:
            ArgumentError: A shape that does not fit the boxes, or a class below 1.
        """
        boxes = as_boxes(boxes, "objects")
        rows = len(boxes)
        flags = [
            torch.zeros(rows, dtype=torch.bool) if flag is None else flag for flag in (difficult, truncated)
        ]
        columns = {"classes": classes, "difficult": flags[0], "truncated": flags[1]}
        wrong = [f"{name} {tuple(column.shape)}" for name, column in columns.items() if column.numel() != rows]
        if wrong:
            raise ArgumentError(f"there are {rows} objects, but {', '.join(wrong)}; each must be ({rows},)")
        if rows and int(classes.min()) <= BACKGROUND:
            raise ArgumentError(
                f"classes must be 1 or more (0 is the background), got {int(classes.min())} "
                f"at row {int(classes.argmin())}"
            )
        at = boxes.device
        return Objects(
            boxes,
            classes.reshape(-1).to(at, torch.int64),
            flags[0].reshape(-1).to(at, torch.bool),
            flags[1].reshape(-1).to(at, torch.bool),
        )

    def keep(self, rows: Tensor) -> Objects:
        """Return the objects where ``rows``, (N,) bool or indices, says so."""
        return Objects(self.boxes[rows], self.classes[rows], self.difficult[rows], self.truncated[rows])

    def __len__(self) -> int:
        return len(self.boxes)


@runtime_checkable
class Rule(Protocol):
    """Anything that labels patches; :class:`OverlapRule` is the one the recipes use."""

    def label(self, boxes: Tensor, objects: Objects) -> PatchLabels:
        """Return the labels of ``boxes``, (P, 4) xyxy, pixels."""
        ...
