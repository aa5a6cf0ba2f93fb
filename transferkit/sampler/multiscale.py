"""The stream of patches: images decoded by workers, their patches cut on the device, minibatches for a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from transferkit.distributed import place_among_ranks
from transferkit.errors import ArgumentError, require
from transferkit.labeling import OverlapRule, Rule
from transferkit.sampler._choose import PatchChooser
from transferkit.sampler._source import (
    PatchSource,
    PixelSource,
    describe_data,
    described,
    digest_of_data,
    require_same,
    tellers_of,
)
from transferkit.sampler.balance import Balance, PositivesFirst, RandomSubset
from transferkit.sampler.grid import Grid, PatchGrid, Proposals
from transferkit.sampler.patch_transforms import PatchTransform
from transferkit.sampler.stream import Cutter, PatchBatch, PatchStream, prefetched


class MultiscaleSampler:
    """Minibatches of labeled patches, cut at many scales from the images of a data set.

    Which patches an epoch holds depends on (seed, epoch, image) and nothing else: not on workers, ranks or device, on
    random numbers drawn elsewhere, or on where a run was resumed.

    Processes of ``torch.distributed`` share the images at test, and in training every minibatch, so that the patches
    of a step are those of one process, however many ranks there are. Each rank decodes its own of the ``mix_images``
    images; where there are more ranks than that, all of them, and cuts its part of the patches. A rank that has no
    part in a minibatch gets one that trains nothing: ``is_filler``, all labels ``IGNORE``, image index -1.

    Args:
        dataset: ``len`` and items like :class:`AnnotatedImage`, or a :class:`FeatureCache` of such: then ``pixels``
            of minibatches are features. An item's ``image`` is (C, H, W) of any real dtype, a tensor or an array, or
            is read by region, the chosen boxes alone and in the workers, see :class:`RegionReader`. The data set may
            have ``image_size(i) -> (height, width)``, which spares decoding where only sizes matter, and ``ids``, by
            which a saved state knows its data.
        grid: Lays patches over an image, see :class:`Grid`; ``None`` to use ``proposals`` alone.
        proposals: Gives (P, 4) boxes more, such as selective search's or ones drawn at random, see
            :class:`Proposals`.
        rule: Labels patches by the objects in them.
        labels: Labels patches in place of a rule: called with an item, which then needs no ``boxes`` and no
            ``classes``, and its patches, (P, 4); gives (P,) int64.
        balance: Chooses among an image's patches. By default, in training :class:`PositivesFirst`, at test
            :class:`RandomSubset`.
        patches_per_image: How many patches the balance is asked for; ``None`` for as many as there are.
        batch_size: B; in training, of all ranks together.
        patch_size: S, the side to which patches are resized.
        mode: ``"train"`` or ``"test"``.
        mix_images: From how many images a minibatch is drawn.
        shuffle: Visit images in another order each epoch, and shuffle the patches among their minibatches. By
            default in training only.
        drop_last: Leave out minibatches that are not full.
        transforms: Random changes to patches, made on the device.
        antialias: See :func:`crop_and_resize`.
        whole_pixels: See :func:`crop_and_resize`.
        dtype: Of the pixels, floating, or ``None`` for the image's own; floats keep the image's range.
        fill: Pixel value of what lies outside the image, or of each by name, such as ``{"image": 0, "mask": 255}``;
            ``None`` where no patch may reach out.
        maps: Further maps that are cut by the same boxes and mirrored alike: an item's attributes, of its image's
            size, each with ``"nearest"``, for class numbers, or ``"bilinear"``, such as ``{"mask": "nearest"}``.
        seed: Of all random choices.
        num_workers: Processes that decode and label; 0 for none. A container's small ``/dev/shm`` is no limit.
        prefetch: How many images each of them prefetches.
        worker_init_fn: Called with its number in each of them, before its first image.
        multiprocessing_context: How they are started, as ``DataLoader`` has it, such as ``"spawn"``.
        device: Where patches are cut and stay; ``None`` for the cpu.
        on_bad_image: What to do when an image, or its size, cannot be read: raise an ``"error"``, or ``"skip"`` it;
            then ``bad_images`` tells which and why, and a warning at the end of the epoch how many. Whatever the data
            set or a reader raises is skipped, but lack of memory; what a rule or a balance raises is an error.
        rank: This process among those that share the images; by default its rank in ``torch.distributed``
            when the sampler is iterated.
        world_size: How many processes share the images; by default the number of ranks there, then.

    Attributes:
        mode: ``"train"`` or ``"test"``.
        mix_images: From how many images a minibatch is drawn.

    Raises:
        ArgumentError: An argument out of range, or neither grid nor proposals.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        grid: Grid | None = PatchGrid(),  # noqa: B008 - a frozen value
        proposals: Proposals | Callable[[Any], Tensor] | None = None,
        rule: Rule = OverlapRule(),  # noqa: B008 - a frozen value
        labels: Callable[[Any, Tensor], Tensor] | None = None,
        balance: Balance | None = None,
        patches_per_image: int | None = 448,
        batch_size: int = 64,
        patch_size: int = 224,
        mode: Literal["train", "test"] = "train",
        mix_images: int = 1,
        shuffle: bool | None = None,
        drop_last: bool = False,
        transforms: Sequence[PatchTransform] = (),
        antialias: bool = True,
        whole_pixels: bool = False,
        dtype: torch.dtype | None = None,
        fill: float | Mapping[str, float] | None = None,
        maps: Mapping[str, Literal["nearest", "bilinear"]] | None = None,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        worker_init_fn: Callable[[int], object] | None = None,
        multiprocessing_context: Any = None,
        device: torch.device | str | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        require(mode in ("train", "test"), "mode", "'train' or 'test'", mode)
        require(on_bad_image in ("error", "skip"), "on_bad_image", "'error' or 'skip'", on_bad_image)
        right = dtype in (None, torch.uint8) or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
        require(right, "dtype", "None for the image's own, torch.uint8 or floating", dtype)
        require(labels is None or rule == OverlapRule(), "rule", "left out where labels are given", rule)
        require(num_workers >= 0, "num_workers", "0 or more", num_workers)
        least_one = {"patches_per_image": patches_per_image, "batch_size": batch_size, "patch_size": patch_size}
        for name, value in {**least_one, "mix_images": mix_images, "prefetch": prefetch}.items():
            require(value is None or (isinstance(value, Integral) and value >= 1), name, "1 or more", value)
        require(len(dataset) > 0, "dataset", "not empty", dataset)
        if grid is None and proposals is None:
            raise ArgumentError("patches must come from somewhere: give a grid, proposals, or both")
        if rank is not None or world_size is not None:
            place_among_ranks(rank, world_size)
        train = mode == "train"
        self.mode, self.mix_images = mode, mix_images
        names = ("image", *(maps or ()))
        fills = fill if isinstance(fill, Mapping) else dict.fromkeys(names, fill)
        require(fills.keys() == set(names), "fill", f"one value, or one for each of {names}", fill)
        self._pixels = PixelSource(grid, proposals, patch_size, antialias, whole_pixels, dtype, fills["image"])
        cut_alike = {
            name: replace(self._pixels, attribute=name, mode=mode, dtype=None, fill=fills[name])
            for name, mode in (maps or {}).items()
        }
        started = {"worker_init_fn": worker_init_fn, "multiprocessing_context": multiprocessing_context}
        source = _source_of(dataset, self._pixels, [*transforms, *cut_alike])
        self._stream = PatchStream(
            chooser=PatchChooser(
                dataset=dataset,
                source=source,
                rule=rule,
                balance=balance or (PositivesFirst() if train else RandomSubset()),
                count=patches_per_image,
                seed=seed,
                own_labels=labels,
                maps=cut_alike,
            ),
            cutter=Cutter(
                source=source,
                batch_size=batch_size,
                transforms=tuple(transforms),
                shuffle=train if shuffle is None else shuffle,
                drop_last=drop_last,
                seed=seed,
                device=torch.device(device or "cpu"),
                maps=cut_alike,
            ),
            mix_images=mix_images,
            train=train,
            skip_bad=on_bad_image == "skip",
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            prefetch=prefetch,
            started=started,
        )
        self._epoch = 0
        self._batch = 0  # minibatches of this epoch that were handed out
        self._waiting = True  # whether the next iteration begins here, rather than at the next epoch

    @property
    def bad_images(self) -> Mapping[int, str]:
        """What was wrong with each image that was skipped, by its place in the data set."""
        return self._stream.bad_images

    @property
    def empty_images(self) -> frozenset[int]:
        """The images passed over so far because neither grid nor proposals lay a patch on them, by their place."""
        return frozenset(self._stream.empty_images)

    @property
    def epoch(self) -> int:
        """The epoch that is, or was last, iterated."""
        return self._epoch

    @property
    def batch_sampler(self) -> SimpleNamespace | None:
        """What loops for a ``DataLoader`` tell the epoch to: Lightning, which loads no state at an epoch's border.

        ``None`` at test, where the epoch stays.
        """
        size = self._stream.cutter.batch_size
        return SimpleNamespace(sampler=self, batch_size=size) if self.mode == "train" else None

    def __repr__(self) -> str:
        chooser, cutter = self._stream.chooser, self._stream.cutter
        patches = f"minibatches of {cutter.batch_size} patches"
        return f"MultiscaleSampler({len(chooser.dataset)} images, mode {self.mode!r}, {patches}, epoch {self._epoch})"

    def __len__(self) -> int:
        """Return the number of minibatches of an epoch, at test of this rank; those of skipped images included."""
        return self._stream.schedule(self._epoch).length

    def __getitem__(self, index: object) -> NoReturn:
        """Refuse to be indexed, as a ``DataLoader`` around a sampler would."""
        raise TypeError(
            "a MultiscaleSampler is iterated, not indexed, and needs no DataLoader around it: write "
            "`for batch in sampler:` and give it num_workers for processes of its own"
        )

    def __iter__(self) -> Iterator[PatchBatch]:
        """Yield the minibatches of the epoch.

        The first iteration is of epoch 0. In training every further one is of the next epoch; at test the epoch
        stays, so that a test is always on the same patches. After :meth:`set_epoch` or :meth:`load_state_dict` it
        begins there.

        Iterations may overlap: each goes through its own epoch, with workers of its own. :attr:`epoch` and
        :meth:`state_dict` tell of the one that was used last.

        Raises:
            DataError: An image cannot be read, and is not to be skipped; or all were skipped; or a worker died, which
                names the image that it worked on.
        """
        if not self._waiting:
            self._epoch, self._batch = self._epoch + (self.mode == "train"), 0
        self._waiting = False
        epoch = self._epoch
        batches, length = self._stream.batches(epoch, self._batch), self._stream.schedule(epoch).length
        for place, batch in prefetched(batches, self._stream.cutter.device):
            self._stand(epoch, place + 1)
            if place + 1 == length:  # a loop that counts asks for no more
                self._stream.warn_of_bad_images()
            yield batch
        self._stand(epoch, length)
        self._stream.warn_of_bad_images()

    def _stand(self, epoch: int, batch: int) -> None:
        """Note where an iteration is, unless the next is to begin elsewhere."""
        if not self._waiting:
            self._epoch, self._batch = epoch, batch

    def gather_bad_images(self) -> None:
        """Make :attr:`bad_images` and :attr:`empty_images` those of all ranks, which must all call this.

        Raises:
            DataError: No image is left; on every rank.
        """
        self._stream.gather_bad_images()

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that is iterated next.

        A position within that epoch that was just loaded by :meth:`load_state_dict` is kept.
        """
        require(epoch >= 0, "epoch", "0 or more", epoch)
        resumed = self._waiting and epoch == self._epoch
        if not resumed:
            self._epoch, self._batch, self._waiting = epoch, 0, True

    def start_at(self, image: int) -> None:
        """Make the next iteration begin at an image of this epoch, where images come one by one in their order.

        Raises:
            ArgumentError: Images are shuffled, mixed or shared by ranks; or there is no such image.
        """
        schedule = self._stream.schedule(self._epoch)
        in_order = schedule.groups == tuple((index,) for index in range(len(self._stream.chooser.dataset)))
        require(in_order, "start_at", "used in test mode, without shuffle, on one rank", self)
        require(0 <= image < len(schedule.ends), "image", f"from 0 to {len(schedule.ends) - 1}", image)
        self._batch, self._waiting = (0, *schedule.ends)[image], True

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is, after the minibatches handed out so far, as plain values."""
        position = {"epoch": self._epoch, "batch": self._batch}
        if self._batch >= len(self):
            position = {"epoch": self._epoch + (self.mode == "train"), "batch": 0}
        return {**position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was taken; takes the same time wherever that is.

        From an epoch's border it also goes on with another number of ranks or patches per minibatch: the epoch holds
        the same patches, dealt out otherwise.

        Raises:
            StateError: The state belongs to other data or other settings; names each that differs.
        """
        now = self._identity()
        if state.get("batch") == 0:
            state = {**state, **{name: now[name] for name in ("world_size", "batch_size")}}
        require_same(state, now)
        self._epoch, self._batch, self._waiting = state["epoch"], state["batch"], True

    @property
    def place(self) -> tuple[int, int]:
        """This process's rank among those that share the images, and their number; see ``rank``."""
        return self._stream.place

    def digest_of_data(self) -> dict[str, str]:
        """Return digests of what the data set tells of its images without decoding; of many, evenly spread ones."""
        return digest_of_data(self._stream.chooser.dataset)

    def _identity(self) -> dict[str, Any]:
        """Return all that decides which patches come when, as plain values by name."""
        stream, chooser, cutter = self._stream, self._stream.chooser, self._stream.cutter
        pixels = self._pixels
        settings = {
            "mode": self.mode,
            "seed": cutter.seed,
            "grid": pixels.grid,
            "proposals": pixels.proposals,
            "rule": chooser.rule,
            "labels": chooser.own_labels,
            "balance": chooser.balance,
            "patches_per_image": chooser.count,
            "batch_size": cutter.batch_size,
            "mix_images": stream.mix_images,
            "shuffle": cutter.shuffle,
            "drop_last": cutter.drop_last,
            "transforms": cutter.transforms,
            "patch_size": pixels.patch_size,
            "antialias": pixels.antialias,
            "whole_pixels": pixels.whole_pixels,
            "dtype": pixels.dtype or torch.uint8,
            "fill": pixels.fill,
            "world_size": stream.place[1],
        }
        return {
            **self._data,
            **{name: described(value) for name, value in settings.items()},
        }

    @cached_property
    def _data(self) -> dict[str, Any]:
        """What tells the data from others: digests of all ids and class names, made once."""
        return describe_data(self._stream.chooser.dataset)


def _source_of(dataset: Any, pixels: PixelSource, changes: Sequence[object]) -> PatchSource:
    """Return the data set's own source of patches where it, or what it views, has one; else one that cuts pixels."""
    tellers = tellers_of(dataset, "patch_source")
    if tellers is None:
        return pixels
    owners = {id(owner): owner for owner, _ in tellers}
    if len(owners) > 1:
        raise ArgumentError(
            f"patches must come from one data set that makes them, got a view of {len(owners)}; make one of the "
            "joined images instead"
        )
    if changes:
        raise ArgumentError(
            f"transforms change pixels and maps go with them, but {type(dataset).__name__} gives patches that were "
            "worked on already; leave both out, or give the images themselves"
        )
    of_photos = replace(pixels, dtype=pixels.dtype or torch.uint8)
    source: PatchSource = owners.popitem()[1].patch_source(of_photos)
    return source
