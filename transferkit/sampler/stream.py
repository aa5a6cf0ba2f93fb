"""One epoch's minibatches from any place on: images come from workers, and their patches are cut here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.utils.data import DataLoader

from transferkit.errors import DataError
from transferkit.sampler.ahead import Placed
from transferkit.sampler.choose import BadImage, ChosenPatches, PatchChooser
from transferkit.sampler.counts import patch_counts
from transferkit.sampler.minibatches import Cutter
from transferkit.sampler.schedule import Schedule, Scheduler


@dataclass(eq=False)
class PatchStream:
    """Makes the minibatches of an epoch on one rank.

    Attributes:
        chooser: Decodes an image and chooses its patches.
        cutter: Cuts them to minibatches.
        mix_images: How many images share minibatches.
        keep_step: Give every rank as many minibatches as the busiest has.
        skip_bad: Pass over images that cannot be read.
        rank: This process, ``0..world_size - 1``.
        world_size: Processes that share the images.
        num_workers: Processes that decode.
        prefetch: Images that each works ahead.
        bad_images: What was wrong with each image that was passed over.
    """

    chooser: PatchChooser
    cutter: Cutter
    mix_images: int
    keep_step: bool
    skip_bad: bool
    rank: int
    world_size: int
    num_workers: int
    prefetch: int
    bad_images: dict[int, str] = field(default_factory=dict)
    _visits: list[tuple[int, int]] = field(default_factory=list)
    _latest: tuple[int, Schedule] | None = None

    def schedule(self, epoch: int) -> Schedule:
        """Return this rank's schedule of an epoch."""
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, self._scheduler(epoch))
        return self._latest[1]

    def batches(self, epoch: int, start: int) -> Iterator[Placed]:
        """Yield the minibatches of an epoch from the ``start``-th on, each with its place in the epoch."""
        schedule = self.schedule(epoch)
        group, first = schedule.find(start)
        remaining = schedule.groups[group:]
        self._visits[:] = [(epoch, image) for members in remaining for image in members]
        images = iter(self._loader)
        place = start
        for members, end in zip(remaining, schedule.ends[group:], strict=True):
            chosen = [image for image in (self._usable(next(images)) for _ in members) if image is not None]
            for batch in self.cutter.minibatches(chosen, epoch, first) if chosen else ():
                yield place, batch
                place += 1
            if self.keep_step:  # other ranks do not know which images were passed over here
                yield from ((missing, self.cutter.filler()) for missing in range(place, end))
            place, first = end, 0
        yield from ((missing, self.cutter.filler()) for missing in range(place, schedule.length))

    def warn_of_bad_images(self, known: int) -> None:
        """Warn of images that were passed over, if there are more than were ``known``.

        Raises:
            DataError: No image is left.
        """
        new = len(self.bad_images) - known
        if len(self.bad_images) == len(self.chooser.dataset):
            raise DataError(f"no image can be used; the first: {next(iter(self.bad_images.values()))}")
        if new:
            index, problem = next(reversed(self.bad_images.items()))
            images = "an image" if new == 1 else f"{new} images"
            warnings.warn(
                f"skipped {images} that cannot be used, the last is image {index}: {problem}", stacklevel=3
            )

    def _usable(self, image: ChosenPatches | BadImage) -> ChosenPatches | None:
        """Return the image, or ``None`` if it is to be passed over."""
        index = image.image_index
        if isinstance(image, BadImage):
            if not self.skip_bad:
                raise DataError(f"image {index} of the data set cannot be used: {image.problem}")
            self.bad_images[index] = image.problem
            return None
        expected = self._scheduler.counts[index]
        if len(image.labels) != expected:
            raise DataError(
                f"image {index} of the data set gave {len(image.labels)} patches where {expected} were expected; "
                "a balance must choose as many of the same labels every time"
            )
        return image

    @cached_property
    def _scheduler(self) -> Scheduler:
        return Scheduler(
            counts=patch_counts(self.chooser, self.num_workers),
            batch_size=self.cutter.batch_size,
            mix_images=self.mix_images,
            shuffle=self.cutter.shuffle,
            drop_last=self.cutter.drop_last,
            keep_step=self.keep_step,
            seed=self.cutter.seed,
            rank=self.rank,
            world_size=self.world_size,
        )

    @cached_property
    def _loader(self) -> DataLoader[ChosenPatches | BadImage]:
        """One loader for all epochs, so that its workers live on; what it visits is in ``_visits``."""
        return DataLoader(
            self.chooser,
            sampler=self._visits,
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.cutter.device.type == "cuda",
            generator=torch.Generator(),  # else the loader draws a seed for its workers from the global one
        )
