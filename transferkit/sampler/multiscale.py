"""The stream of patches: images decoded by workers, their patches cut on the device, minibatches for a loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from transferkit.errors import ArgumentError, StateError, require
from transferkit.labeling import OverlapRule, Rule
from transferkit.sampler.balance import Balance, PositivesFirst, RandomSubset
from transferkit.sampler.batch import PatchBatch
from transferkit.sampler.choose import ChosenPatches, PatchChooser, Proposals
from transferkit.sampler.counts import patch_counts
from transferkit.sampler.grid import PatchGrid
from transferkit.sampler.minibatches import Cutter, minibatches
from transferkit.sampler.randomness import generator
from transferkit.sampler.schedule import Schedule, Scheduler


class MultiscaleSampler:
    """Minibatches of labelled patches, cut at many scales from the images of a data set.

    Which patches an epoch holds depends on (seed, epoch, image) and nothing else: neither on workers, ranks or
    device, nor on random numbers drawn elsewhere, nor on where a run was resumed.

    Args:
        dataset: ``len`` and items like :class:`AnnotatedImage`; ``image_size(i)`` if it has it.
        grid: Lays patches over an image; ``None`` to use ``proposals`` alone.
        proposals: Called with an item, gives (P, 4) more patches, such as selective search's.
        rule: Labels patches by the objects in them.
        balance: Chooses among an image's patches. By default, in training :class:`PositivesFirst`, at test
            :class:`RandomSubset`.
        patches_per_image: How many patches the balance is asked for; ``None`` for as many as there are.
        batch_size: B.
        patch_size: S, the side to which patches are resized.
        mode: ``"train"`` or ``"test"``.
        mix_images: From how many images a minibatch is drawn.
        shuffle: Visit images in another order each epoch, and shuffle the patches among their minibatches. By
            default in training only.
        drop_last: Leave out minibatches that are not full.
        antialias: See :func:`crop_and_resize`.
        whole_pixels: See :func:`crop_and_resize`.
        dtype: Of the pixels; floats keep the range 0..255.
        seed: Of all random choices.
        num_workers: Processes that decode and label; 0 for none.
        device: Where patches are cut and stay.
        rank: This process among those that share the images; by default its rank in ``torch.distributed``.
        world_size: How many processes share the images; likewise.

    Raises:
        ArgumentError: An argument out of range, or neither grid nor proposals.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        grid: PatchGrid | None = PatchGrid(),  # noqa: B008 - a frozen value
        proposals: Proposals | None = None,
        rule: Rule = OverlapRule(),  # noqa: B008 - a frozen value
        balance: Balance | None = None,
        patches_per_image: int | None = 448,
        batch_size: int = 64,
        patch_size: int = 224,
        mode: Literal["train", "test"] = "train",
        mix_images: int = 1,
        shuffle: bool | None = None,
        drop_last: bool = False,
        antialias: bool = True,
        whole_pixels: bool = False,
        dtype: torch.dtype = torch.uint8,
        seed: int = 0,
        num_workers: int = 0,
        device: torch.device | str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        require(len(dataset) > 0, "dataset", "not empty", dataset)
        if grid is None and proposals is None:
            raise ArgumentError("patches must come from somewhere: give a grid, proposals, or both")
        require(mode in ("train", "test"), "mode", "'train' or 'test'", mode)
        wanted = patches_per_image is None or patches_per_image >= 1
        require(wanted, "patches_per_image", "1 or more, or None", patches_per_image)
        for name, value in {
            "batch_size": batch_size,
            "patch_size": patch_size,
            "mix_images": mix_images,
        }.items():
            require(value >= 1, name, "1 or more", value)
        require(num_workers >= 0, "num_workers", "0 or more", num_workers)
        train = mode == "train"
        self.mode = mode
        self.batch_size = batch_size
        self.seed = seed
        self._shuffle = train if shuffle is None else shuffle
        self._num_workers = num_workers
        self._cutter = Cutter(patch_size, antialias, whole_pixels, dtype, torch.device(device or "cpu"))
        self._chooser = PatchChooser(
            dataset=dataset,
            grid=grid,
            proposals=proposals,
            rule=rule,
            balance=balance or (PositivesFirst() if train else RandomSubset()),
            count=patches_per_image,
            seed=seed,
        )
        rank, world_size = _place_among_ranks(rank, world_size)
        self._scheduler = Scheduler(
            counts=patch_counts(self._chooser),
            batch_size=batch_size,
            mix_images=mix_images,
            shuffle=self._shuffle,
            drop_last=drop_last,
            keep_step=train,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        self._epoch = 0
        self._batch = 0  # minibatches of this epoch that were handed out
        self._waiting = True  # whether the next iteration begins here, rather than at the next epoch

    def __len__(self) -> int:
        """Return the number of minibatches of an epoch on this rank."""
        return self._scheduler(self._epoch).length

    def __iter__(self) -> Iterator[PatchBatch]:
        """Yield the minibatches of the epoch.

        The first iteration is of epoch 0. In training every further one is of the next epoch; at test the epoch
        stays, so that a test is always on the same patches. After :meth:`set_epoch` or :meth:`load_state_dict`
        it begins there.
        """
        if not self._waiting:
            self._epoch, self._batch = self._epoch + (self.mode == "train"), 0
        self._waiting = False
        schedule = self._scheduler(self._epoch)
        for batch in self._batches(schedule, self._batch):
            self._batch += 1
            yield batch

    def _batches(self, schedule: Schedule, start: int) -> Iterator[PatchBatch]:
        """Yield the minibatches of a schedule from the ``start``-th on."""
        group, first = schedule.find(start)
        remaining = schedule.groups[group:]
        images = iter(self._loader([(self._epoch, image) for members in remaining for image in members]))
        for members in remaining:
            chosen = [next(images) for _ in members]
            yield from self._group_batches(members, chosen, first)
            first = 0
        for _ in range(max(start, schedule.own), schedule.length):
            yield self._cutter.filler(self.batch_size)

    def _group_batches(
        self, members: tuple[int, ...], chosen: list[ChosenPatches], first: int
    ) -> Iterator[PatchBatch]:
        patches = sum(len(one.labels) for one in chosen)
        order = torch.arange(patches)
        if self._shuffle:
            order = torch.randperm(patches, generator=generator(self.seed, self._epoch, *members, "mix"))
        if self._scheduler.drop_last:
            order = order[: patches - patches % self.batch_size]
        return minibatches(chosen, order, self.batch_size, self._cutter, first)

    def _loader(self, visits: list[tuple[int, int]]) -> DataLoader[ChosenPatches]:
        return DataLoader(
            self._chooser,
            sampler=visits,
            batch_size=None,
            num_workers=self._num_workers,
            pin_memory=self._cutter.device.type == "cuda",
            generator=torch.Generator(),  # or the loader would draw its workers' seed from the global one
        )

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that is iterated next.

        A position within that epoch that was just loaded by :meth:`load_state_dict` is kept.
        """
        require(epoch >= 0, "epoch", "0 or more", epoch)
        if not (self._waiting and epoch == self._epoch):
            self._epoch, self._batch, self._waiting = epoch, 0, True

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is, after the minibatches handed out so far, as plain values."""
        if self._batch < self._scheduler(self._epoch).length:
            return {"epoch": self._epoch, "batch": self._batch, **self._identity()}
        return {"epoch": self._epoch + (self.mode == "train"), "batch": 0, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was taken; takes the same time wherever that is.

        Raises:
            StateError: The state is of other data or other settings; names them.
        """
        identity = self._identity()
        different = [
            f"{name}: {state.get(name)!r} when it was saved, {value!r} now"
            for name, value in identity.items()
            if state.get(name) != value
        ]
        if different:
            raise StateError("the sampler's state is of other data or settings\n  " + "\n  ".join(different))
        self._epoch, self._batch, self._waiting = state["epoch"], state["batch"], True

    def _identity(self) -> dict[str, Any]:
        chooser, scheduler = self._chooser, self._scheduler
        return {
            "mode": self.mode,
            "images": len(chooser.dataset),
            "grid": repr(chooser.grid),
            "rule": repr(chooser.rule),
            "balance": repr(chooser.balance),
            "patches_per_image": chooser.count,
            "batch_size": self.batch_size,
            "mix_images": scheduler.mix_images,
            "shuffle": self._shuffle,
            "drop_last": scheduler.drop_last,
            "seed": self.seed,
            "world_size": scheduler.world_size,
        }


def _place_among_ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if ready else 1
    if rank is None:
        rank = torch.distributed.get_rank() if ready else 0
    require(0 <= rank < world_size, "rank", f"from 0 to world_size - 1 = {world_size - 1}", rank)
    return rank, world_size
