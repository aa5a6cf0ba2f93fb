"""From chosen patches of a group of images to minibatches of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transferkit.labeling import IGNORE
from transferkit.sampler.batch import PatchBatch
from transferkit.sampler.choose import ChosenPatches
from transferkit.sampler.crop import crop_and_resize


@dataclass(frozen=True)
class Cutter:
    """Cuts patches to pixels.

    Attributes:
        patch_size: S.
        antialias: See :func:`crop_and_resize`.
        whole_pixels: See :func:`crop_and_resize`.
        dtype: Of the pixels.
        device: Where patches are cut and stay.
    """

    patch_size: int
    antialias: bool
    whole_pixels: bool
    dtype: torch.dtype
    device: torch.device

    def upload(self, image: Tensor) -> Tensor:
        """Return the image on the device."""
        return image.to(self.device, non_blocking=True)

    def __call__(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return the patches of an image that is on the device, (B, 3, S, S)."""
        return crop_and_resize(
            image,
            boxes,
            self.patch_size,
            self.antialias,
            whole_pixels=self.whole_pixels,
            dtype=self.dtype,
        )

    def filler(self, batch_size: int) -> PatchBatch:
        """Return a minibatch that trains nothing: black patches of no image (-1), labelled ``IGNORE``."""
        side = self.patch_size
        return PatchBatch(
            torch.zeros(batch_size, 3, side, side, dtype=self.dtype, device=self.device),
            torch.full((batch_size,), IGNORE, device=self.device),
            torch.zeros(batch_size, 4, dtype=torch.float64),
            torch.full((batch_size,), -1),
        )


def minibatches(
    group: Sequence[ChosenPatches], order: Tensor, batch_size: int, cutter: Cutter, first: int = 0
) -> Iterator[PatchBatch]:
    """Cut the patches of a group of images, minibatch by minibatch.

    The patches of a single image are cut all at once, since patches of a grid share most of the work; those of
    several images when their turn comes, so that memory is bounded by the images and one minibatch, whatever
    their number.

    Args:
        group: The images with their chosen patches.
        order: (P,) the order of all the group's patches, numbered image by image.
        batch_size: B.
        cutter: Cuts them.
        first: The minibatch to start with.
    """
    boxes = torch.cat([chosen.boxes for chosen in group])[order]
    labels = torch.cat([chosen.labels for chosen in group])[order]
    member = torch.repeat_interleave(torch.tensor([len(chosen.labels) for chosen in group]))[order]
    index = torch.tensor([chosen.image_index for chosen in group])[member]
    images = [cutter.upload(chosen.image) for chosen in group]
    whole = cutter(images[0], boxes) if len(group) == 1 else None
    for rows in torch.split(torch.arange(len(order)), batch_size)[first:]:
        if whole is not None:
            pixels = whole[rows[0] : rows[-1] + 1]
        else:
            pixels = _cut_from_several(images, member[rows], boxes[rows], cutter)
        yield PatchBatch(pixels, labels[rows].to(cutter.device, non_blocking=True), boxes[rows], index[rows])


def _cut_from_several(images: Sequence[Tensor], member: Tensor, boxes: Tensor, cutter: Cutter) -> Tensor:
    side = cutter.patch_size
    pixels = torch.empty(len(boxes), 3, side, side, dtype=cutter.dtype, device=cutter.device)
    for place in torch.unique(member).tolist():
        rows = (member == place).nonzero()[:, 0]
        pixels[rows.to(cutter.device)] = cutter(images[place], boxes[rows])
    return pixels
