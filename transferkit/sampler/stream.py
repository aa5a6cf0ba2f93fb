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

from transferkit.distributed import place_among_ranks
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


def blank_like(batch: PatchBatch, count: int) -> PatchBatch:
    """Return black patches of the form of others that train nothing: of no image (-1), labeled ``IGNORE``."""
    black = batch._moved(lambda tensor: tensor.new_zeros(count, *tensor.shape[1:]))
    ignored, nowhere = batch.labels.new_full((count,), IGNORE), torch.zeros(count, 4, dtype=torch.float64)
    return replace(black, labels=ignored, boxes=nowhere, image_index=torch.full((count,), -1))


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

    def minibatches(self, group: Sequence[ChosenPatches], epoch: int, first: int = 0) -> Iterator[PatchBatch]:
        """Yield the minibatches of a group of images, from the ``first``-th on.

        The patches of a single image are cut all at once, since patches of a grid share most of the work. Those of
        several images are cut when their turn comes, so that memory is bounded by the images and one minibatch.
        """
        boxes = torch.cat([chosen.boxes for chosen in group])
        labels = torch.cat([chosen.labels for chosen in group])
        member = torch.repeat_interleave(torch.tensor([len(chosen.labels) for chosen in group]))
        draws = self._draws(group, epoch)
        order = self._order(group, epoch)
        pixels = self._made(self.source, [chosen.content for chosen in group], group, order)
        maps = {
            name: self._made(source, [chosen.maps[name] for chosen in group], group, order)
            for name, source in self.maps.items()
        }
        for start in range(first * self.batch_size, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            here = [drawn[rows].to(self.device, non_blocking=True) for drawn in draws]
            yield PatchBatch(
                self._transformed(pixels(start), here),
                labels[rows].to(self.device, non_blocking=True),
                boxes[rows],
                torch.tensor([chosen.image_index for chosen in group])[member[rows]],
                {name: self._transformed(make(start), here, of_map=True) for name, make in maps.items()},
            )

    def nothing(self) -> PatchBatch:
        """Return a minibatch of the form that the source's have where nothing else is known."""
        labels = torch.zeros(1, dtype=torch.int64, device=self.device)
        return PatchBatch(self.source.blank(1, self.device), labels, torch.zeros(1, 4), torch.zeros(1))

    def _transformed(self, pixels: Tensor, draws: Sequence[Tensor], of_map: bool = False) -> Tensor:
        """Change pixels at random; maps only by what moves pixels, and alike."""
        for transform, drawn in zip(self.transforms, draws, strict=True):
            if not of_map or getattr(transform, "moves_pixels", False):
                pixels = transform.apply(pixels, drawn)
        return pixels

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

    def _made(
        self, source: Any, contents: Sequence[Tensor], group: Sequence[ChosenPatches], order: Tensor
    ) -> Callable[[int], Tensor]:
        """Return what makes the minibatch that begins at a place of the ``order``."""
        there = [content.to(self.device, non_blocking=True) for content in contents]
        if len(group) == 1:
            whole = source.make(there[0], group[0].boxes, order)
            return lambda start: whole[start : start + self.batch_size]
        return lambda start: self._make_from_several(
            source, there, group, order[start : start + self.batch_size]
        )

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
        train: Give every rank as many minibatches as the busiest has.
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
        visits = [(epoch, image) for members in remaining for image in members]
        place = start
        like: PatchBatch | None = None
        with closing(self._workers.results(visits)) as images:
            for members, end in zip(remaining, schedule.ends[group:], strict=True):
                chosen = [image for image in (self._usable(next(images)) for _ in members) if image is not None]
                for batch in self.cutter.minibatches(chosen, epoch, first) if chosen else ():
                    like = blank_like(batch, 1) if like is None else like
                    _require_alike(like.pixels, batch.pixels, int(batch.image_index[0]))
                    yield place, batch
                    place += 1
                if (
                    self.train and self.place[1] > 1
                ):  # other ranks do not know which images were passed over here
                    yield from self._fillers(range(place, end), epoch, like)
                place, first = end, 0
        yield from self._fillers(range(place, schedule.length), epoch, like)

    def _fillers(self, places: Sequence[int], epoch: int, like: PatchBatch | None) -> Iterator[Placed]:
        """Yield minibatches that train nothing, of the form of others."""
        if places and like is None:  # this rank has seen none
            images = (self.chooser[(epoch, index)] for index in range(len(self.chooser.dataset)))
            usable = (image for image in images if isinstance(image, ChosenPatches) and len(image.labels))
            like = next((batch for image in usable for batch in self.cutter.minibatches([image], epoch)), None)
        like = like or self.cutter.nothing()
        yield from ((place, blank_like(like, self.cutter.batch_size)) for place in places)

    def warn_of_bad_images(self) -> None:
        """Warn of images that were passed over, if there are more than it last told of.

        Raises:
            DataError: No image is left.
        """
        new, self._warned = len(self.bad_images) - self._warned, len(self.bad_images)
        if len({*self.bad_images, *self.empty_images}) == len(self.chooser.dataset):
            first = next(iter(self.bad_images.values()), "neither grid nor proposals lay a patch on any")
            raise DataError(f"no image can be used; the first: {first}")
        if new:
            index, problem = next(reversed(self.bad_images.items()))
            images = "an image" if new == 1 else f"{new} images"
            warnings.warn(
                f"skipped {images} that cannot be used, the last is image {index}: {problem}", stacklevel=3
            )

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
            keep_step=self.train and world_size > 1,
            seed=self.cutter.seed,
            rank=rank,
            world_size=world_size,
        )

    @cached_property
    def _workers(self) -> Workers:
        pinned = self.cutter.device.type == "cuda"
        return Workers(self.chooser, self.num_workers, self.prefetch, pinned, **self.started)
