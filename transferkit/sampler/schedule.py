"""The order in which ranks and workers visit images, from random numbers of (seed, epoch, purpose)."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from transferkit.errors import ArgumentError


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """Return a generator for one purpose: the same for the same seed and keys, unrelated for any other.

    What is drawn for one image cannot depend on how many images, workers or ranks came before it, since no
    generator is shared between them.

    Args:
        seed: The run's seed.
        keys: What the numbers are for, such as ``(epoch, image, "balance")``.

    Returns:
        A generator on the cpu, wherever the numbers are used.

    Example:
        >>> draws = [torch.rand((), generator=generator(13, 0, 5, "balance")).item() for _ in range(2)]
        >>> draws[0] == draws[1]
        True
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


# Who visits which image when: the order of an epoch, its shares among ranks, and where minibatches begin and end.


@dataclass(frozen=True)
class Schedule:
    """What one rank does in one epoch.

    Attributes:
        groups: Images that share minibatches, in order.
        ends: Number of minibatches up to the end of each group.
    """

    groups: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]

    @property
    def length(self) -> int:
        """Number of minibatches."""
        return self.ends[-1] if self.ends else 0

    def find(self, batch: int) -> tuple[int, int]:
        """Return the group that the epoch's ``batch``-th minibatch belongs to, and its place in that group.

        Groups without minibatches right before it are not passed over: their images may be ones that cannot be read.
        """
        begins = (0, *self.ends)
        group = bisect_right(self.ends, batch)
        while group and begins[group - 1] == begins[group] == batch:
            group -= 1
        return group, batch - begins[group]


@dataclass(frozen=True)
class Scheduler:
    """Makes the schedules of a data set.

    Attributes:
        counts: Number of patches that each image gives.
        batch_size: B.
        mix_images: How many images share minibatches.
        shuffle: Visit the images in another order each epoch.
        drop_last: Leave out the minibatch at the end of a group that is not full.
        keep_step: Every rank has a part of every minibatch; otherwise, of the images.
        seed: Of the order.
        rank: This process, ``0..world_size - 1``.
        world_size: Processes that share the images.
    """

    counts: Sequence[int]
    batch_size: int
    mix_images: int
    shuffle: bool
    drop_last: bool
    keep_step: bool
    seed: int
    rank: int = 0
    world_size: int = 1

    def __call__(self, epoch: int) -> Schedule:
        """Return this rank's schedule of an epoch."""
        order = self._order(epoch)
        if self.drop_last:
            self._require_some(order)
        mine = self._of(order, self.rank).tolist()
        groups = tuple(tuple(mine[i : i + self.mix_images]) for i in range(0, len(mine), self.mix_images))
        patches = self._patches(order, self.rank)
        batches = patches // self.batch_size if self.drop_last else -(-patches // self.batch_size)
        return Schedule(groups, tuple(batches.cumsum().tolist()))

    def _require_some(self, order: np.ndarray[Any, Any]) -> None:
        """Raise if every minibatch of the epoch is left out, on all ranks."""
        ranks = range(1 if self.keep_step else self.world_size)
        most = max(int(self._patches(order, rank).max(initial=0)) for rank in ranks)
        if 0 < most < self.batch_size:
            raise ArgumentError(
                f"drop_last leaves out every minibatch: mix_images={self.mix_images} images have {most} patches at "
                f"most, and batch_size is {self.batch_size}; make it {most} or less, or mix more images"
            )

    def _order(self, epoch: int) -> np.ndarray[Any, Any]:
        images = len(self.counts)
        if not self.shuffle:
            return np.arange(images)
        return torch.randperm(images, generator=generator(self.seed, epoch, "order")).numpy()

    def _of(self, order: np.ndarray[Any, Any], rank: int) -> np.ndarray[Any, Any]:
        """Return the images that a rank visits."""
        return order if self.keep_step else order[rank :: self.world_size]

    def _patches(self, order: np.ndarray[Any, Any], rank: int) -> np.ndarray[Any, Any]:
        """Return the number of patches of each of a rank's groups of images."""
        counts = self._counts[self._of(order, rank)]
        starts = np.arange(0, len(counts), self.mix_images)
        return np.add.reduceat(counts, starts) if len(starts) else counts

    @cached_property
    def _counts(self) -> np.ndarray[Any, Any]:
        return np.asarray(self.counts, dtype=np.int64)
