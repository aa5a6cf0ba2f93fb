"""From the chosen patches of a group of images to minibatches of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.labeling import IGNORE
from transferkit.sampler.batch import PatchBatch
from transferkit.sampler.choose import ChosenPatches
from transferkit.sampler.patch_transforms import PatchTransform
from transferkit.sampler.randomness import generator
from transferkit.sampler.source import PatchSource


@dataclass(frozen=True)
class Cutter:
    """Makes minibatches; the settings it needs.

    Attributes:
        source: Makes patches of what was chosen.
        batch_size: B.
        transforms: Made to every patch, in this order.
        shuffle: Shuffle the patches of a group among its minibatches.
        drop_last: Leave out a minibatch that is not full.
        seed: Of all random choices.
        device: Where patches are cut and stay.
    """

    source: PatchSource
    batch_size: int
    transforms: tuple[PatchTransform, ...]
    shuffle: bool
    drop_last: bool
    seed: int
    device: torch.device

    def minibatches(self, group: Sequence[ChosenPatches], epoch: int, first: int = 0) -> Iterator[PatchBatch]:
        """Yield the minibatches of a group of images, from the ``first``-th on.

        The patches of a single image are cut all at once, since patches of a grid share most of the work. Those of
        several images are cut when their turn comes, so that memory is bounded by the images and one minibatch.
        """
        boxes = torch.cat([chosen.boxes for chosen in group])
        labels = torch.cat([chosen.labels for chosen in group])
        member = torch.repeat_interleave(torch.tensor([len(chosen.labels) for chosen in group]))
        draws = self._draws(group, epoch)
        contents = [chosen.content.to(self.device, non_blocking=True) for chosen in group]
        order = self._order(group, epoch)
        whole = self.source.make(contents[0], boxes, order) if len(group) == 1 else None
        for start in range(first * self.batch_size, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            if whole is not None:
                pixels = whole[start : start + self.batch_size]
            else:
                pixels = self._make_from_several(group, contents, member, rows)
            for transform, drawn in zip(self.transforms, draws, strict=True):
                pixels = transform.apply(pixels, drawn[rows].to(self.device, non_blocking=True))
            yield PatchBatch(
                pixels,
                labels[rows].to(self.device, non_blocking=True),
                boxes[rows],
                torch.tensor([chosen.image_index for chosen in group])[member[rows]],
            )

    def filler(self) -> PatchBatch:
        """Return a minibatch that trains nothing: black patches of no image (-1), labelled ``IGNORE``."""
        count = self.batch_size
        return PatchBatch(
            self.source.blank(count, self.device),
            torch.full((count,), IGNORE, device=self.device),
            torch.zeros(count, 4, dtype=torch.float64),
            torch.full((count,), -1),
        )

    def _order(self, group: Sequence[ChosenPatches], epoch: int) -> Tensor:
        """Return the order of the group's patches, numbered image by image."""
        count = sum(len(chosen.labels) for chosen in group)
        order = torch.arange(count)
        if self.shuffle:
            indices = (chosen.image_index for chosen in group)
            order = torch.randperm(count, generator=generator(self.seed, epoch, *indices, "mix"))
        return order[: count - count % self.batch_size] if self.drop_last else order

    def _draws(self, group: Sequence[ChosenPatches], epoch: int) -> list[Tensor]:
        """Return what each transform draws for each of the group's patches."""
        return [
            torch.cat(
                [
                    transform.draw(
                        len(chosen.labels), generator(self.seed, epoch, chosen.image_index, "transform", place)
                    )
                    for chosen in group
                ]
            )
            for place, transform in enumerate(self.transforms)
        ]

    def _make_from_several(
        self, group: Sequence[ChosenPatches], contents: Sequence[Tensor], member: Tensor, rows: Tensor
    ) -> Tensor:
        """Make the group's patches ``rows``, (B,), each of the image that ``member`` says."""
        first = torch.tensor([0, *(len(chosen.labels) for chosen in group)]).cumsum(
            0
        )  # of each image's patches
        made: Tensor | None = None
        for place in torch.unique(member[rows]).tolist():
            here = (member[rows] == place).nonzero()[:, 0]
            some = self.source.make(contents[place], group[place].boxes, rows[here] - first[place])
            if made is None:
                made = some.new_empty(len(rows), *some.shape[1:])
            made[here.to(made.device)] = some
        return self.source.blank(0, self.device) if made is None else made
