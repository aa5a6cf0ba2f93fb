"""The probabilities of every patch, kept for maps and for any exponent afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from transferkit.errors import ArgumentError
from transferkit.scorer.across_ranks import gather_objects
from transferkit.scorer.checks import check_batch
from transferkit.scorer.image_scorer import ImageScorer, Reduction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PatchLog:
    """Keep all patches of a test run in memory, in float32 on the cpu: 4 K + 24 bytes per patch.

    It takes the batches that an :class:`ImageScorer` takes and gives the same scores, for one exponent after
    another; the maps of an image come from its patches.

    Args:
        num_images: N.
        num_classes: K, background included.
        exponent: What :meth:`compute` uses unless told otherwise.
        reduction: Likewise.

    Example:
        >>> log = PatchLog(num_images=1, num_classes=2)
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])
        >>> log.add_batch(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 0]), boxes)
        >>> [log.compute(exponent).tolist() for exponent in (1, 2)]
        [[[0.5, 1.5]], [[0.25, 1.25]]]
    """

    def __init__(
        self, num_images: int, num_classes: int, exponent: float = 5, reduction: Reduction = "sum"
    ) -> None:
        ImageScorer(num_images, num_classes, exponent, reduction)  # refuses what is out of range
        self.num_images = num_images
        self.num_classes = num_classes
        self.exponent = exponent
        self.reduction: Reduction = reduction
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add_batch(self, probs: Tensor, image_index: Tensor, boxes: Tensor | None = None) -> None:
        """Take in a batch of patches; see :meth:`ImageScorer.add_batch`. Here the boxes are needed.

        Raises:
            ArgumentError: No boxes, or a batch that an :class:`ImageScorer` would refuse.
        """
        if boxes is None:
            raise ArgumentError("boxes must be given: maps are drawn from where the patches lie")
        check_batch(probs, image_index, boxes, self.num_images, self.num_classes, values=True)
        batch = (probs.detach().float(), image_index.detach().long(), boxes.detach().float())
        self._batches.append((batch[0].cpu(), batch[1].cpu(), batch[2].cpu()))

    def compute(
        self, exponent: float | None = None, reduction: Reduction | None = None, *, log: bool = False
    ) -> Tensor:
        """Return the (N, K) float64 scores that an :class:`ImageScorer` with these settings gives.

        Args:
            exponent: Unless that of this log.
            reduction: Likewise.
            log: Return their logarithm; see :meth:`ImageScorer.compute`.
        """
        exponent = self.exponent if exponent is None else exponent
        reduction = self.reduction if reduction is None else reduction
        scorer = ImageScorer(self.num_images, self.num_classes, exponent, reduction, validate=False)
        for probs, image_index, boxes in self._batches:
            scorer.add_batch(probs, image_index, boxes)
        return scorer.compute(log)

    def patches(self, image: int) -> tuple[Tensor, Tensor]:
        """Return the (P, K) probabilities and (P, 4) boxes of one image, in the order they came."""
        self._sort()
        probs, image_index, boxes = self._batches[0]
        first, end = torch.searchsorted(image_index, torch.tensor([image, image + 1])).tolist()
        return probs[first:end], boxes[first:end]

    def across_ranks(self, group: ProcessGroup | None = None) -> PatchLog:
        """Return a log of what all ranks of a distributed run have seen; see :meth:`ImageScorer.across_ranks`."""
        whole = PatchLog(self.num_images, self.num_classes, self.exponent, self.reduction)
        whole._batches = [batch for batches in gather_objects(self._batches, group) for batch in batches]
        return whole

    def _sort(self) -> None:
        """Make one batch of all, image after image."""
        if len(self._batches) == 1 and not (self._batches[0][1].diff() < 0).any():
            return
        empty = (torch.zeros(0, self.num_classes), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        probs, image_index, boxes = (
            torch.cat(parts) for parts in zip(*(self._batches or [empty]), strict=True)
        )
        image_index, order = image_index.sort(stable=True)
        self._batches = [(probs[order], image_index, boxes[order])]
