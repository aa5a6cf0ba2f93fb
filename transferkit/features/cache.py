"""Features of frozen layers, computed once for every patch of every image, and kept on disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.distributed import (
    gather_objects,
    in_process_group,
    on_all_ranks,
    place_among_ranks,
    require_same_on_all_ranks,
)
from transferkit.errors import ArgumentError, DataError, OutputError, StateError, UncachableError, require
from transferkit.features._identity import agree, describe, half_of, probe
from transferkit.features._photos import Look, Photos, digest_of_tensor, look_at
from transferkit.features.contents import (
    INDEX,
    MANIFEST,
    PHOTOS,
    CacheContents,
    CacheSize,
    bytes_for,
    cache_contents,
    count_patches,
    find_folder,
    free_bytes,
)
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.shards import (
    PRECISIONS,
    SUFFIX,
    CachedImage,
    CachedSource,
    Shards,
    ViewOfImages,
    require_same_patches,
)
from transferkit.file_index import FileIndex
from transferkit.locks import lock_folder
from transferkit.progress import Progress, track
from transferkit.sampler import PatchGrid
from transferkit.sampler._choose import BAD_IMAGE
from transferkit.sampler._source import PixelSource, asked_for, describe_data, described, digest_of_data
from transferkit.sampler._workers import Visit, Workers
from transferkit.scorer._tally import from_each_rank


class FeatureCache(ViewOfImages):
    """The features of all patches of a data set's images, on disk.

    Give it to a sampler in place of the data set, and minibatches hold features where they held pixels;
    patches, labels and their order are those that the data set itself would give with the same settings::

        features = PatchFeatures(model.features)
        cache = FeatureCache("cache", features, dataset, grid=NEON2016.grid)
        print(cache.size())
        cache.fill(progress=True)
        for batch in NEON2016.sampler(cache, mode="train"):
            loss = cross_entropy(head(batch.pixels), batch.labels)

    A photo's features are found by its content and its patches, in a folder named after what the network computes:
    its weights, buffers, structure and settings, and its features of fixed pixels. So data sets may share a folder,
    and share what is the same; a photo that changed is computed again, and no other. Boxes and labels are never kept,
    but asked of the data set. What cannot be told apart so is refused: a network or a data set that gives other
    numbers each time.

    The content of a photo is the digest of its file, where the data set has a method ``photo_file(i)`` that returns
    ``(path, reading)``, where ``reading`` is any text that tells how pixels are made of files, or ``None``. A file is
    read for that once, and again when its size or a time of change differs. Else it is the data set's own
    ``fingerprint(i)``, equal for equal pixels only; else the digest of the decoded pixels, for which each photo is
    decoded once for each cache object. So it is, too, where proposals lay patches, and where the data set has no
    method ``objects(i)`` that returns ``(boxes, classes, difficult, truncated)`` without decoding; its objects are
    then those that it had at that time.

    A killed :meth:`fill` loses at most the image in work, and the next one goes on. One job writes at a time; others
    wait for it, or read.

    Args:
        folder: Holds any number of caches, each in a folder of its own.
        features: Computes them; its settings of pixels are those that a sampler must have.
        dataset: Of annotated images.
        grid: Lays patches; ``None`` for ``proposals`` alone.
        proposals: Gives more patches, as for :class:`MultiscaleSampler`.
        precision: ``torch.float16``, ``torch.bfloat16`` or ``torch.float32``. With float32 training is bit for
            bit what it would be without a cache.
        limit: The most bytes that it may take; ``None`` for as much as the disk has.

    Attributes:
        folder: Where the features of this network are.
        key: The digest of what the network computes.

    Raises:
        ArgumentError: An argument out of range.
        UncachableError: A network whose features cannot be told from another's; says why.
        OutputError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        features: PatchFeatures,
        dataset: Any,
        *,
        grid: PatchGrid | None = PatchGrid(),  # noqa: B008 - a frozen value
        proposals: Callable[[Any], Tensor] | None = None,
        precision: torch.dtype = torch.float16,
        limit: int | None = None,
    ) -> None:
        super().__init__(dataset, features)
        require(precision in PRECISIONS, "precision", f"one of {', '.join(map(str, PRECISIONS))}", precision)
        require(limit is None or limit > 0, "limit", "positive or None", limit)
        require(len(dataset) > 0, "dataset", "not empty", dataset)
        require(grid is not None or proposals is not None, "grid", "given where there are no proposals", grid)
        alike = proposals is None or asked_for(proposals) < 2
        require(alike, "proposals", "called with an item alone, to give the same in every epoch", proposals)
        cutting = features.resizing
        self._pixels = PixelSource(
            grid, proposals, cutting.patch_size, cutting.antialias, cutting.whole_pixels, cutting.dtype
        )
        self.shape, self._precision, self._limit = features.shape, precision, limit
        self._probe, self._half = probe(features), half_of(features)
        self._description = describe(features, precision)
        self._root = Path(folder)
        self._photos = Photos(dataset, self._pixels, FileIndex(self._root / PHOTOS))
        self._problems: dict[int, str] = {}
        self._sure_until = 0.0
        self._open()

    def __getitem__(self, index: int) -> CachedImage:
        """Return one image's patches, objects and features.

        Raises:
            DataError: It is not in the cache yet, or could not be used when it was filled.
        """
        look = self._photos.looks.get(index)
        if look is None:
            self._photos.look([index])
            look = self._photos.looks[index]
        problem = self._problems.get(index, look)
        if isinstance(problem, str) or isinstance(look, str):
            raise DataError(str(problem))
        if not self._shards.path(look.name).is_file():
            raise DataError(f"image {index} is not in the cache at {self.folder}; fill it first")
        patches, features = self._shards.read(look.name)
        if digest_of_tensor(patches) != look.laid:
            raise self._shards.damaged(look.name)
        return CachedImage(patches, *self._photos.objects(index), features)

    def __repr__(self) -> str:
        return f"FeatureCache({len(self)} images, {tuple(self.shape)} {self._precision}, {str(self.folder)!r})"

    def patch_source(self, pixels: PixelSource) -> CachedSource:
        """Return where a sampler gets its patches, if they are those that it wants.

        Raises:
            ArgumentError: The sampler's patches would be others; names each setting that differs.
            StateError: The cache is not filled.
        """
        missing = [] if time.monotonic() < self._sure_until else self.missing()
        if missing:
            raise StateError(
                f"{len(missing)} of {len(self)} images are not in the cache at {self.folder}; fill it first"
            )
        require_same_patches(self._pixels, pixels)
        return CachedSource(self._pixels, self._shards)

    def patch_count(self, index: int) -> int:
        """Return how many patches an image has, 0 for one that cannot be used."""
        look = self._photos.looks.get(index)
        return look.patches if isinstance(look, Look) and index not in self._problems else 0

    def require_features(self, features: PatchFeatures) -> None:
        """Raise unless the cache holds what ``features`` computes.

        Raises:
            ArgumentError: Another network, or other settings; names what differs.
        """
        differ = self._differ(features)
        if not differ and not agree(self._probe, probe(features), self._half):
            differ = ["its features of fixed pixels"]
        if differ:
            raise ArgumentError(
                f"the features in {self.folder} are of another network or other settings: {', '.join(differ)} "
                "differ; make them with the same classifier settings"
            )

    def _differ(self, features: PatchFeatures) -> list[str]:
        other = describe(features, self._precision)
        return [name for name, value in self._description.items() if other.get(name) != value]

    def missing(self) -> list[int]:
        """Return the images that are not in the cache yet, those aside that the last :meth:`fill` could not use."""
        began = time.monotonic()
        self._photos.look(index for index in range(len(self)) if index not in self._problems)
        missing = [index for index in range(len(self)) if index not in self._problems and not self._done(index)]
        self._shards.index.save()
        took = time.monotonic() - began  # of a million images half a minute, for each of several samplers
        self._sure_until = began + 10 * took if took > 1 and not missing else 0.0
        return missing

    def size(self) -> CacheSize:
        """Return how much the cache takes, of which how much is there, and what the disk has left."""
        if any(self.folder.glob("*" + SUFFIX)):  # else there is nothing to look for yet
            self._photos.look(range(len(self)))
        return self._size()

    def _size(self) -> CacheSize:
        known = [look for look in self._photos.looks.values() if isinstance(look, Look)]
        patches, exact = sum(look.patches for look in known), True
        if len(known) < len(self):
            patches, exact = count_patches(self._dataset, self._pixels)
        return CacheSize(
            images=len(self),
            patches=patches,
            exact=exact,
            needed=bytes_for(len(self), patches, self.shape, self._precision.itemsize),
            written=self._shards.bytes_on_disk({look.name for look in known}),
            free=free_bytes(self.folder),
        )

    def contents(self) -> CacheContents:
        """Return what all caches in the folder hold, and what of it this one does not use."""
        return cache_contents(self._root, [self])

    def files(self) -> list[Path]:
        """Return the files that this cache reads, whether they are there or not."""
        self._photos.look(range(len(self)))
        known = [look for look in self._photos.looks.values() if isinstance(look, Look)]
        own = [self.folder / MANIFEST, self.folder / INDEX, self._root / PHOTOS]
        return [*own, *(self._shards.path(look.name) for look in known)]

    def fill(
        self,
        *,
        num_workers: int = 0,
        progress: Progress = False,
        rank: int | None = None,
        world_size: int | None = None,
        verify: bool = False,
    ) -> CacheSize:
        """Compute and write what is missing.

        Images that cannot be used are noted, and a sampler treats them as it would without a cache; the next call
        tries them again. Where another job fills the cache, this waits until that has ended.

        Args:
            num_workers: Processes that read and decode.
            progress: See :func:`transferkit.progress.track`; counts images.
            rank: This process, which writes every ``world_size``-th image; by default its rank
                in ``torch.distributed``, where all wait for each other at the end.
            world_size: How many processes share the work; by default the number of ranks.
            verify: Read every photo and every file of the cache again, though their sizes and times are as they were.

        Returns:
            What :meth:`size` told before it began.

        Raises:
            OutputError: It would take more than the limit, or than the disk has; or a file cannot be written.
            UncachableError: The data set gives other pixels each time.
            ArgumentError: Ranks begin with different data, settings or networks; on all of them, naming what differs.
        """
        alone = rank is not None or not in_process_group()
        if rank is None:
            require_same_on_all_ranks("to fill a cache", self._facts)
        rank, world = place_among_ranks(rank, world_size)
        mine = range(rank, len(self), world)
        self._problems.clear()
        looked = range(len(self)) if alone else mine
        how: dict[str, Any] = {"num_workers": num_workers, "progress": progress}
        on_all_ranks(partial(self._photos.look, looked, again=verify, **how))
        self._photos.looks = _together({index: self._photos.looks[index] for index in looked})
        size = on_all_ranks(self._ready)  # all ranks see the same folders now
        missing = [index for index in mine if not self._done(index, again=verify)]
        if any(gather_objects(bool(missing))):  # a cache that is whole may lie where nothing can be written
            with lock_folder(self.folder, wait=math.inf):
                left = [index for index in missing if not self._done(index)]
                on_all_ranks(partial(self._compute, left, num_workers, progress))
                self._problems = _together(self._problems)
        self._shards.index.save()
        if not alone:
            self._hand_round(world)
        return size

    def _hand_round(self, world: int) -> None:
        """Send features to the ranks that do not see them, whose machine has a disk of its own."""
        gather_objects(None)  # all have saved what they know
        self._photos.index.refresh()
        self._shards.index.refresh()
        lacking = set(self.missing())
        wanted = sorted(set().union(*gather_objects(lacking)))
        by_rank = [[index for index in wanted if index % world == rank] for rank in range(world)]
        failure: OutputError | None = None
        for turn in zip_longest(*by_rank):
            own = turn[place_among_ranks()[0]]
            content = torch.zeros(0, dtype=torch.uint8) if own is None else self._bytes_of(own)
            for index, found in zip(turn, from_each_rank({"content": content}), strict=True):
                look = self._photos.looks.get(index)
                if index in lacking and len(found["content"]) and isinstance(look, Look):
                    try:
                        self._shards.adopt(look.name, found["content"].numpy().tobytes())
                    except OutputError as error:  # the others still count on this rank
                        failure, lacking = error, set()
        on_all_ranks(partial(_raised, failure))
        self._shards.index.save()

    def _bytes_of(self, index: int) -> Tensor:
        """Return a photo's shard, nothing where it is gone."""
        look = self._photos.looks[index]
        content = np.zeros(0, np.uint8)
        with suppress(FileNotFoundError):
            content = np.fromfile(self._shards.path("" if isinstance(look, str) else look.name), np.uint8)
        return torch.from_numpy(content)

    def _compute(self, missing: list[int], num_workers: int, progress: Progress) -> None:
        """Write the shards of this rank."""
        if missing and (differ := self._differ(self.features)):
            changed = f"the network changed since the cache was made: {', '.join(differ)} differ"
            raise StateError(f"{changed}; make a FeatureCache of the network as it is now")
        work = _Items(self._dataset, self._pixels, self._photos)
        # What is random is not to be as it was when the photos were looked at.
        workers = Workers(work, num_workers if missing else 0, seed=1)
        items = workers.results([(0, index) for index in missing])
        for index, found in zip(missing, self._tracked(items, len(missing), progress), strict=True):
            self._write(index, found)

    def _facts(self) -> dict[str, object]:
        """Return what all ranks that fill the cache must have in common."""
        laid = {"grid": described(self._pixels.grid), "proposals": described(self._pixels.proposals)}
        return {**self._description, **laid, **describe_data(self._dataset), **digest_of_data(self._dataset)}

    def _ready(self) -> CacheSize:
        """Find the folder, and the room in it for what is missing."""
        self._open()
        size = self._size()
        size.require_room(self.folder, self._limit)
        return size

    def _tracked(self, items: Iterable[Any], total: int, progress: Progress) -> Iterable[Any]:
        return track(items, progress, total=total, description="features", unit="image") if total else ()

    def _write(self, index: int, found: tuple[Any, Tensor] | str | UncachableError) -> None:
        look = self._photos.looks[index]
        if isinstance(found, UncachableError):
            raise found
        if isinstance(found, str) or isinstance(look, str):
            self._problems[index] = str(found)
            return
        item, patches = found
        self._shards.write(look.name, index, patches, self.features(item.image, patches))

    def _done(self, index: int, *, again: bool = False) -> bool:
        look = self._photos.looks.get(index)
        return isinstance(look, Look) and self._shards.done(look.name, look.patches, again=again)

    def _open(self) -> None:
        """Find the folder of this network's features, or make it."""
        self.folder = find_folder(self._root, self._description, self._probe, self._half)
        self.key = self.folder.name
        self._shards = Shards(self.folder, self._precision, self.shape, FileIndex(self.folder / INDEX))


class _Items:
    """Decoded images with their patches, or what is wrong with them."""

    def __init__(self, dataset: Any, pixels: PixelSource, photos: Photos) -> None:
        self.dataset, self._pixels, self._photos = dataset, pixels, photos

    def __getitem__(self, visit: Visit) -> tuple[Any, Tensor] | str | UncachableError:
        _, index = visit
        try:
            item = self.dataset[index]
            patches, now = self._pixels.patches(item), look_at(self.dataset, self._pixels, index, item)
        except BAD_IMAGE as error:
            return f"{type(error).__name__}: {error}"
        before = self._photos.looks.get(index)
        if isinstance(before, str) or (before is not None and before.name == now.name):
            return before if isinstance(before, str) else (item, patches)
        if self._photos.tells_file(index):
            return "it changed while it was read, or its data set tells another size or other patches of it each time"
        return UncachableError(
            f"image {index} of the data set has other pixels or patches each time it is read, so its features are "
            "not cached; leave out what changes them at random, or train without a cache"
        )


def _raised(failure: OutputError | None) -> None:
    if failure is not None:
        raise failure


def _together(part: dict[Any, Any]) -> dict[Any, Any]:
    """Return what all ranks know, each of some."""
    return {key: value for some in gather_objects(part) for key, value in some.items()}
