"""One epoch's minibatches from any place on: images come from workers, and their patches are cut here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from transferkit.distributed import gather_objects, place_among_ranks
from transferkit.errors import DataError
from transferkit.labeling import IGNORE
from transferkit.sampler._choose import BadImage, ChosenPatches, PatchChooser, patch_counts
from transferkit.sampler._source import PatchSource, PixelSource
from transferkit.sampler._workers import Workers
from transferkit.sampler.patch_transforms import PatchTransform
from transferkit.sampler.regions import bits
from transferkit.sampler.schedule import Schedule, Scheduler, generator


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """A minibatch of patches.

    Attributes:
        pixels: (B, C, S, S) on the sampler's device; of photos uint8 or floating in 0..255, RGB.
        labels: (B,) int64 on the same device: class, 0 for background, ``IGNORE``.
        boxes: (B, 4) float64 on the cpu: xyxy, pixels, in the patch's image.
        image_index: (B,) int64 on the cpu: the image's place in the data set.
        maps: (B, C, S, S) of the sampler's ``maps`` by name, on its device.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor
    image_index: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_filler(self) -> bool:
        """Whether it trains nothing: this rank has no patches in a minibatch of which others have some."""
        return bool((self.image_index < 0).all())

    def __repr__(self) -> str:
        shown = int((self.labels > 0).sum())
        pixels = f"pixels {tuple(self.pixels.shape)} {str(self.pixels.dtype).removeprefix('torch.')}"
        images = len(self.image_index.unique())  # type: ignore[no-untyped-call]
        return f"PatchBatch({pixels}, {shown} with an object, of {images} images)"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchBatch:
        """Return it with pixels, labels and maps on a device; boxes and image indices stay on the cpu."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PatchBatch:
        """Return it with pixels, labels and maps in pinned memory, from which a GPU copies beside its work."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> PatchBatch:
        maps = {name: move(values) for name, values in self.maps.items()}
        return replace(self, pixels=move(self.pixels), labels=move(self.labels), maps=maps)


def filler_like(batch: PatchBatch) -> PatchBatch:
    """Return patches once more that train nothing now: of no image (-1), labeled ``IGNORE``.

    Real ones, since a norm layer would take black ones into its statistics.
    """
    ignored, nowhere = torch.full_like(batch.labels, IGNORE), torch.zeros_like(batch.boxes)
    return replace(batch, labels=ignored, boxes=nowhere, image_index=torch.full_like(batch.image_index, -1))


# From the chosen patches of a group of images to minibatches of pixels.


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
        maps: Make further maps of the patches, by name.
    """

    source: PatchSource
    batch_size: int
    transforms: tuple[PatchTransform, ...]
    shuffle: bool
    drop_last: bool
    seed: int
    device: torch.device
    maps: Mapping[str, PixelSource] = field(default_factory=dict)

    def plan(self, images: Sequence[int], counts: Sequence[int], epoch: int) -> list[Tensor]:
        """Return the rows of each minibatch of a group of images, whose patches are numbered image by image."""
        order = torch.arange(count := sum(counts))
        if self.shuffle:
            order = torch.randperm(count, generator=generator(self.seed, epoch, *images, "mix"))
        order = order[: count - count % self.batch_size] if self.drop_last else order
        starts = range(0, len(order), self.batch_size)
        return [order[start : start + self.batch_size] for start in starts]

    def minibatches(
        self, group: Sequence[ChosenPatches], epoch: int, plan: Sequence[Tensor]
    ) -> Iterator[PatchBatch]:
        """Yield the minibatches of a group of images, each the rows that ``plan`` says.

        The patches of a single image are cut all at once, since patches of a grid share most of the work. Those of
        several images are cut when their turn comes, so that memory is bounded by the images and one minibatch.
        """
        boxes = torch.cat([chosen.boxes for chosen in group])
        labels = torch.cat([chosen.labels for chosen in group])
        member = torch.repeat_interleave(torch.tensor([len(chosen.labels) for chosen in group]))
        draws = self._draws(group, epoch)
        pixels = self._made(self.source, [chosen.content for chosen in group], group, plan)
        maps = {
            name: self._made(source, [chosen.maps[name] for chosen in group], group, plan)
            for name, source in self.maps.items()
        }
        for place, rows in enumerate(plan):
            here = [drawn[rows].to(self.device, non_blocking=True) for drawn in draws]
            yield PatchBatch(
                self._transformed(pixels(place), here),
                labels[rows].to(self.device, non_blocking=True),
                boxes[rows],
                torch.tensor([chosen.image_index for chosen in group])[member[rows]],
                {name: self._transformed(make(place), here, of_map=True) for name, make in maps.items()},
            )

    def nothing(self) -> PatchBatch:
        """Return a minibatch of the form that the source's have where nothing else is known."""
        one = torch.zeros(1, dtype=torch.int64)
        return PatchBatch(
            self.source.blank(1, self.device), one.to(self.device), torch.zeros(1, 4).double(), one
        )

    def _transformed(self, pixels: Tensor, draws: Sequence[Tensor], of_map: bool = False) -> Tensor:
        """Change pixels at random; maps only by what moves pixels, and alike."""
        for transform, drawn in zip(self.transforms, draws, strict=True):
            if not of_map or getattr(transform, "moves_pixels", False):
                pixels = transform.apply(pixels, drawn)
        return pixels

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

    def _made(
        self, source: Any, contents: Sequence[Tensor], group: Sequence[ChosenPatches], plan: Sequence[Tensor]
    ) -> Callable[[int], Tensor]:
        """Return what makes the minibatch at a place of the ``plan``."""
        there = [content.to(self.device, non_blocking=True) for content in contents]
        if len(group) == 1:
            whole = source.make(there[0], group[0].boxes, torch.cat([*plan]))
            parts = torch.split(whole, [len(rows) for rows in plan])
            return lambda place: parts[place]
        return lambda place: self._make_from_several(source, there, group, plan[place])

    def _make_from_several(
        self, source: Any, contents: Sequence[Tensor], group: Sequence[ChosenPatches], rows: Tensor
    ) -> Tensor:
        """Make the group's patches ``rows``, (B,), numbered image by image."""
        ends = torch.tensor([len(chosen.labels) for chosen in group]).cumsum(0)
        member = torch.bucketize(rows, ends, right=True)
        made: Tensor | None = None
        for place in torch.unique(member).tolist():
            here = (member == place).nonzero()[:, 0]
            first = ends[place] - len(group[place].labels)
            some = source.make(contents[place], group[place].boxes, rows[here] - first)
            if made is None:
                made = some.new_empty(len(rows), *some.shape[1:])
            _require_alike(made, some, group[place].image_index)
            bits(made)[here.to(made.device)] = bits(some)
        return source.blank(0, self.device) if made is None else made


def _require_alike(one: Tensor, other: Tensor, image: int) -> None:
    """Raise unless the patches of an image have the form of those before."""
    forms = [f"{tuple(of.shape[1:])} {of.dtype}" for of in (one, other)]
    if forms[0] != forms[1]:
        raise DataError(
            f"all images must have the same channels and type: patches of image {image} of the data set are "
            f"{forms[1]}, those of others {forms[0]}; make them alike in the data set"
        )


# Prefetch: prepare the next minibatches while the device works on this one.

Placed = tuple[int, PatchBatch]
"""A minibatch with its place in the epoch."""

_PREFETCHED = 2  # minibatches that are ready at most, besides the one in work


def prefetched(batches: Iterator[Placed], device: torch.device) -> Iterator[Placed]:
    """Yield ``batches``; on cuda, prefetch them in a thread and on a stream of their own.

    To plan, upload and cut a photo's patches keeps the host busy about as long as to launch the model's work on them:
    with one thread for both a GPU idled for a third of the time. The model's stream waits for a minibatch only if it
    is not there yet. Elsewhere nothing runs beside the caller, and this changes nothing.
    """
    if device.type != "cuda":
        yield from batches
        return
    maker = _Maker(batches, device)
    try:
        for placed, done in maker:
            consumer = torch.cuda.current_stream(device)
            consumer.wait_event(done)
            # The allocator must not give this memory away before the consumer's stream is through with it.
            for tensor in (placed[1].pixels, placed[1].labels, *placed[1].maps.values()):
                tensor.record_stream(consumer)
            yield placed
    finally:
        maker.stop()


class _Maker:
    """Makes minibatches in a thread, each with an event that comes when it is ready on the device."""

    def __init__(self, batches: Iterator[Placed], device: torch.device) -> None:
        self._batches = batches
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._made: Queue[tuple[Placed, torch.cuda.Event] | BaseException | None] = Queue(_PREFETCHED)
        self._stopped = Event()
        # The first is made by the caller, so that workers are started from its thread, as they should be.
        self._first = self._launch()
        self._thread = Thread(target=self._work, name="transferkit-prefetch", daemon=True)

    def __iter__(self) -> Iterator[tuple[Placed, torch.cuda.Event]]:
        if self._first is None:
            return
        self._thread.start()
        yield self._first
        while (made := self._made.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            yield made

    def stop(self) -> None:
        """End the thread, whatever it is at."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._made.get(timeout=0.01)  # it may wait for room
            except Empty:
                continue
        self._batches.close()  # type: ignore[attr-defined]

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                made = self._launch()
                self._made.put(made)
                if made is None:
                    return
        except BaseException as error:  # for the thread that iterates to raise
            self._made.put(error)

    def _launch(self) -> tuple[Placed, torch.cuda.Event] | None:
        with torch.cuda.stream(self._side):
            placed = next(self._batches, None)
            return None if placed is None else (placed, self._side.record_event())


@dataclass(eq=False)
class PatchStream:
    """Makes the minibatches of an epoch on one rank.

    Attributes:
        chooser: Decodes an image and chooses its patches.
        cutter: Cuts them to minibatches.
        mix_images: How many images share minibatches.
        train: Divide every minibatch among the ranks; otherwise, the images.
        skip_bad: Pass over images that cannot be read.
        rank: This process, ``0..world_size - 1``; ``None``: as ``torch.distributed`` says at the time.
        world_size: Processes that share the images; ``None`` likewise.
        num_workers: Processes that decode.
        prefetch: Images that each worker prefetches.
        started: How workers are, by ``DataLoader``'s arguments.
        bad_images: What was wrong with each image that was passed over.
        empty_images: Images on which no patch lies.
    """

    chooser: PatchChooser
    cutter: Cutter
    mix_images: int
    train: bool
    skip_bad: bool
    rank: int | None
    world_size: int | None
    num_workers: int
    prefetch: int
    started: Mapping[str, Any]
    bad_images: dict[int, str] = field(default_factory=dict)
    empty_images: set[int] = field(default_factory=set)
    _warned: int = 0
    _latest: tuple[tuple[int, ...], Schedule] | None = None

    @property
    def keep_step(self) -> bool:
        """Whether every rank has a part of every minibatch."""
        return self.train and self.place[1] > 1

    @property
    def place(self) -> tuple[int, int]:
        """The rank among those that share the images, and their number, as they are now."""
        return place_among_ranks(self.rank, self.world_size)

    def schedule(self, epoch: int) -> Schedule:
        """Return this rank's schedule of an epoch."""
        now = (epoch, *self.place)  # samplers may be made before the process group is
        if self._latest is None or self._latest[0] != now:
            self._latest = (now, self._scheduler()(epoch))
        return self._latest[1]

    def batches(self, epoch: int, start: int) -> Iterator[Placed]:
        """Yield the minibatches of an epoch from the ``start``-th on, each with its place in the epoch."""
        schedule = self.schedule(epoch)
        group, first = schedule.find(start)
        remaining = schedule.groups[group:]
        visits = [(epoch, image) for members in remaining for image in self._mine(members)]
        place = start
        like: PatchBatch | None = None
        with closing(self._workers.results(visits)) as images:
            for members, end in zip(remaining, schedule.ends[group:], strict=True):
                found = [self._usable(next(images)) for _ in self._mine(members)]
                chosen = [image for image in found if image is not None]
                plan = self._plan(members, chosen, epoch)[first:]
                cut = self.cutter.minibatches(chosen, epoch, [rows for rows in plan if len(rows)])
                for rows in plan:
                    batch = next(cut) if len(rows) else None
                    like = (batch or self.any_batch(epoch))._moved(Tensor.clone) if like is None else like
                    if batch is not None:
                        _require_alike(like.pixels, batch.pixels, int(batch.image_index[0]))
                    yield place, filler_like(like) if batch is None else batch
                    place += 1
                place, first = end, 0

    @property
    def _by_image(self) -> bool:
        """Whether ranks share a minibatch's images; otherwise every rank decodes them all, and cuts some patches."""
        return self.mix_images >= self.place[1]

    def _mine(self, members: Sequence[int]) -> Sequence[int]:
        """Return the images of a group that this rank decodes."""
        rank, ranks = self.place
        return members[rank::ranks] if self.keep_step and self._by_image else members

    def _plan(self, members: Sequence[int], chosen: Sequence[ChosenPatches], epoch: int) -> list[Tensor]:
        """Return this rank's rows of each minibatch of a group, as places among the patches that were chosen."""
        here = {image.image_index: len(image.labels) for image in chosen}
        if not self.keep_step:
            return self.cutter.plan([*here], [*here.values()], epoch)
        # As many as were counted beforehand: other ranks may not know which images are passed over.
        counts = [self.counts[image] for image in members]
        own = torch.tensor([image in here for image in members]).repeat_interleave(torch.tensor(counts))
        place = own.cumsum(0) - 1
        plan = self.cutter.plan(members, counts, epoch)
        if not self._by_image:
            rank, ranks = self.place
            plan = [rows[rank::ranks] for rows in plan]
        return [place[rows[own[rows]]] for rows in plan]

    def any_batch(self, epoch: int) -> PatchBatch:
        """Return a minibatch of the first image that can be used."""
        images = (self.chooser[(epoch, index)] for index in range(len(self.chooser.dataset)))
        usable = (image for image in images if isinstance(image, ChosenPatches) and len(image.labels))
        some = ((image, [torch.arange(len(image.labels))[: self.cutter.batch_size]]) for image in usable)
        cut = (batch for image, rows in some for batch in self.cutter.minibatches([image], epoch, rows))
        return next(cut, None) or self.cutter.nothing()

    def warn_of_bad_images(self) -> None:
        """Warn of images that were passed over, if there are more than it last told of.

        Raises:
            DataError: No image is left.
        """
        new, self._warned = len(self.bad_images) - self._warned, len(self.bad_images)
        self._require_one()
        if new:
            index, problem = next(reversed(self.bad_images.items()))
            images = "an image" if new == 1 else f"{new} images"
            warnings.warn(
                f"skipped {images} that cannot be used, the last is image {index}: {problem}", stacklevel=3
            )

    def gather_bad_images(self) -> None:
        """Take in which images the other ranks passed over; raise if none is left."""
        for bad, empty in gather_objects((self.bad_images, self.empty_images)):
            self.bad_images.update(bad)
            self.empty_images.update(empty)
        self._warned = len(self.bad_images)
        self._require_one()

    def _require_one(self) -> None:
        if len({*self.bad_images, *self.empty_images}) == len(self.chooser.dataset):
            first = next(iter(self.bad_images.values()), "neither grid nor proposals lay a patch on any")
            raise DataError(f"no image can be used; the first: {first}")

    def _usable(self, image: ChosenPatches | BadImage) -> ChosenPatches | None:
        """Return the image, or ``None`` if it is to be passed over."""
        if isinstance(image, BadImage):
            self._note(image)
            return None
        index = image.image_index
        if not image.laid:
            self.empty_images.add(index)
            return None
        expected = self.counts[index]
        if not expected and index in self.bad_images:  # it could not be used when patches were counted
            return None
        if len(image.labels) != expected:
            raise DataError(
                f"image {index} of the data set gave {len(image.labels)} patches where {expected} were expected; a "
                "balance must choose as many of the same labels every time, proposals must give as many boxes, and "
                "image_size() must be the image's"
            )
        return image

    def _note(self, image: BadImage) -> None:
        """List an image that is to be passed over, or raise."""
        index = image.image_index
        if not (self.skip_bad and image.skippable):
            raise DataError(f"image {index} of the data set cannot be used: {image.problem}") from image.error
        self.bad_images[index] = image.problem

    @cached_property
    def counts(self) -> Sequence[int]:
        """The number of patches that each image gives."""
        return patch_counts(self.chooser, self.num_workers, self._note, **self.started)

    def _scheduler(self) -> Scheduler:
        rank, world_size = self.place
        return Scheduler(
            counts=self.counts,
            batch_size=self.cutter.batch_size,
            mix_images=self.mix_images,
            shuffle=self.cutter.shuffle,
            drop_last=self.cutter.drop_last,
            keep_step=self.keep_step,
            seed=self.cutter.seed,
            rank=rank,
            world_size=world_size,
        )

    @cached_property
    def _workers(self) -> Workers:
        pinned = self.cutter.device.type == "cuda"
        return Workers(self.chooser, self.num_workers, self.prefetch, pinned, **self.started)
