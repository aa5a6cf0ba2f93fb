"""Features of frozen layers, computed once for every patch of every image, and kept on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transferkit.distributed import in_process_group, place_among_ranks
from transferkit.errors import ArgumentError, OutputError, StateError, listed, require
from transferkit.features._identity import describe_cache, key_of
from transferkit.features.patch_features import PatchFeatures
from transferkit.features.shards import PRECISIONS, CachedImage, CachedSource, Shards, ViewOfImages
from transferkit.files import write_atomically
from transferkit.progress import Progress, track
from transferkit.sampler import PatchGrid
from transferkit.sampler._choose import BAD_IMAGE
from transferkit.sampler._source import PixelSource, Proposals

_LOOKED_AT = 8  # images that are decoded where only they tell how many patches they have


@dataclass(frozen=True)
class CacheSize:
    """What a cache takes.

    Attributes:
        images: How many.
        patches: Of all images; estimated from a few where ``exact`` is false.
        exact: Whether that is known rather than estimated.
        needed: Bytes, for all images.
        written: Bytes that are there already.
        free: Bytes that the disk has left.
    """

    images: int
    patches: int
    exact: bool
    needed: int
    written: int
    free: int

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        return (
            f"{about}{readable(self.needed)} for {about}{self.patches:,} patches of {self.images:,} images "
            f"({readable(self.written)} written already, {readable(self.free)} free)"
        )

    def require_room(self, folder: Path, limit: int | None) -> None:
        """Raise unless the cache fits the limit, and what is missing the disk.

        Raises:
            OutputError: Saying what is needed, what there is, and what to do.
        """
        advice = "cache fewer images or patches, pool more, store float16, or train without a cache"
        if limit is not None and self.needed > limit:
            raise OutputError(
                f"the cache at {folder} needs {self}, more than its limit of {readable(limit)}; raise the limit, "
                f"{advice}"
            )
        if self.needed - self.written > self.free:
            raise OutputError(f"the cache at {folder} needs {self}; choose another disk, {advice}")


def count_patches(dataset: Any, pixels: PixelSource) -> tuple[int, bool]:
    """Return how many patches all images have, and whether that is known rather than estimated from a few."""
    available = pixels.available(dataset)
    if available is not None:
        return sum(available), True
    step = max(1, len(dataset) // _LOOKED_AT)
    some = range(0, len(dataset), step)
    found = sum(len(pixels.patches(dataset[index])) for index in some)
    return math.ceil(found * len(dataset) / len(some)), len(some) == len(dataset)


def bytes_for(images: int, patches: int, shape: tuple[int, ...], item_size: int) -> int:
    """Return what features and notes take: an array's header is 128 bytes, a box in text about 70."""
    return patches * math.prod(shape) * item_size + 128 * images + 70 * patches + 500 * images


def free_bytes(folder: Path) -> int:
    """Return what the disk of a folder has left."""
    return shutil.disk_usage(folder).free


def readable(count: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> readable(512), readable(11_060_000), readable(55_296_000_000)
        ('512 bytes', '11.1 MB', '55.3 GB')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


FORMAT = "transferkit-features"

VERSION = 2  # 1: networks were told by modules that have other names now


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

    Its folder is named after a digest of all that its numbers depend on (:func:`describe_cache`): the weights
    and structure of backbone and pool, method and pyramid scales, patches, pixels, precision, and the data, by its
    images' names and, where it has ``fingerprint(i)``, their content. What changed is looked for elsewhere, so what
    is stale is never read. A function of proposals is known by its name alone; give it another one when it
    changes.

    A killed :meth:`fill` loses at most the image in work, and the next one goes on. Each image has one writer.

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
        folder: Where this cache is.
        key: The digest.

    Raises:
        ArgumentError: An argument out of range.
        OutputError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        features: PatchFeatures,
        dataset: Any,
        *,
        grid: PatchGrid | None = PatchGrid(),  # noqa: B008 - a frozen value
        proposals: Proposals | None = None,
        precision: torch.dtype = torch.float16,
        limit: int | None = None,
    ) -> None:
        super().__init__(dataset, features)
        require(precision in PRECISIONS, "precision", f"one of {', '.join(map(str, PRECISIONS))}", precision)
        require(limit is None or limit > 0, "limit", "positive or None", limit)
        require(len(dataset) > 0, "dataset", "not empty", dataset)
        require(grid is not None or proposals is not None, "grid", "given where there are no proposals", grid)
        cutting = features.resizing
        pixels = PixelSource(
            grid, proposals, cutting.patch_size, cutting.antialias, cutting.whole_pixels, cutting.dtype
        )
        description = describe_cache(features, dataset, pixels, precision)
        self.key = key_of(description)
        self.folder = Path(folder) / self.key
        self.shape = features.shape
        self._pixels, self._limit = pixels, limit
        self._shards = Shards(self.folder, precision)
        manifest = {"format": FORMAT, "version": VERSION, "shape": list(self.shape), **description}
        _open_folder(self.folder, manifest)

    def __getitem__(self, index: int) -> CachedImage:
        """Return one image's patches, objects and features.

        Raises:
            DataError: It is not in the cache yet, or could not be used when it was written.
        """
        return self._shards.read(index)

    def __repr__(self) -> str:
        return f"FeatureCache({len(self)} images, {tuple(self.shape)} {self._shards.precision}, {str(self.folder)!r})"

    def patch_source(self, pixels: PixelSource) -> CachedSource:
        """Return where a sampler gets its patches, if they are those that it wants.

        Raises:
            ArgumentError: The sampler's patches would be others; names each setting that differs.
            StateError: The cache is not filled.
        """
        missing = self.missing()
        if missing:
            raise StateError(
                f"{len(missing)} of {len(self)} images are not in the cache at {self.folder}; fill it first"
            )
        return CachedSource.for_sampler(self._pixels, pixels, self._shards, self.shape)

    def require_features(self, features: PatchFeatures) -> None:
        """Raise unless the cache holds what ``features`` computes.

        Raises:
            ArgumentError: Another network, or other settings; names what differs.
        """
        other = describe_cache(features, self._dataset, self._pixels, self._shards.precision)
        own = json.loads((self.folder / "manifest.json").read_bytes())
        differ = [name for name, value in json.loads(json.dumps(other)).items() if own.get(name) != value]
        if differ:
            names = {"trunk": "backbone", "levels": "pyramid_scales"}  # the names in older files
            words = ", ".join(names.get(name, name) for name in differ)
            raise ArgumentError(
                f"the features in {self.folder} are of another network or other settings: {words} "
                "differ; make them with the same classifier settings"
            )

    def missing(self) -> list[int]:
        """Return the images that are not in the cache yet."""
        return [index for index in range(len(self)) if not self._shards.done(index)]

    def size(self) -> CacheSize:
        """Return how much the cache takes, of which how much is there, and what the disk has left."""
        patches, exact = count_patches(self._dataset, self._pixels)
        item_size = torch.empty((), dtype=self._shards.precision).element_size()
        return CacheSize(
            images=len(self),
            patches=patches,
            exact=exact,
            needed=bytes_for(len(self), patches, self.shape, item_size),
            written=self._shards.bytes_on_disk(range(len(self))),
            free=free_bytes(self.folder),
        )

    def fill(
        self,
        *,
        num_workers: int = 0,
        progress: Progress = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> CacheSize:
        """Compute and write what is missing.

        Images that cannot be used are noted, and a sampler treats them as it would without a cache.

        Args:
            num_workers: Processes that decode.
            progress: See :func:`transferkit.progress.track`; counts images.
            rank: This process, which writes every ``world_size``-th image; by default its rank
                in ``torch.distributed``, where all wait for each other at the end.
            world_size: How many processes share the work; by default the number of ranks.

        Returns:
            What :meth:`size` told before it began.

        Raises:
            OutputError: It would take more than the limit, or than the disk has.
        """
        rank, world = place_among_ranks(rank, world_size)
        size = self.size()
        size.require_room(self.folder, self._limit)
        mine = [index for index in self.missing() if index % world == rank]
        items = DataLoader(
            _Items(self._dataset, self._pixels),
            sampler=mine,
            batch_size=None,
            num_workers=num_workers,
            generator=torch.Generator(),
        )
        for index, found in zip(mine, self._tracked(items, len(mine), progress), strict=True):
            self._write(index, found)
        if in_process_group():
            torch.distributed.barrier()
        return size

    def _tracked(self, items: Iterable[Any], total: int, progress: Progress) -> Iterable[Any]:
        return track(items, progress, total=total, description="features", unit="image") if total else ()

    def _write(self, index: int, found: tuple[Any, Tensor] | str) -> None:
        if isinstance(found, str):
            self._shards.write_problem(index, found)
            return
        item, patches = found
        self._shards.write(index, patches, item, self.features(item.image, patches))


class _Items(Dataset["tuple[Any, Tensor] | str"]):
    """Decoded images with their patches, or what is wrong with them."""

    def __init__(self, dataset: Any, pixels: PixelSource) -> None:
        self._dataset, self._pixels = dataset, pixels

    def __getitem__(self, index: int) -> tuple[Any, Tensor] | str:
        try:
            item = self._dataset[index]
            return item, self._pixels.patches(item)
        except BAD_IMAGE as error:
            return f"{type(error).__name__}: {error}"


def _open_folder(folder: Path, manifest: dict[str, Any]) -> None:
    """Make the folder of a cache, or see that it is this one's."""
    path = folder / "manifest.json"
    text = json.dumps(manifest, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _warn_of_earlier_versions(folder.parent, manifest)
        if not path.exists():  # several processes may come here at once, with the same text
            own = folder / f"manifest-{os.getpid()}.json"
            write_atomically(own, lambda file: file.write(text.encode())).replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    found = json.loads(path.read_bytes())
    if found != json.loads(text):
        differ = sorted(name for name in {*found, *manifest} if found.get(name) != json.loads(text).get(name))
        raise StateError(
            f"{path} belongs to another cache: {', '.join(differ)} differ; delete {os.fspath(folder)}"
        )


def _warn_of_earlier_versions(folder: Path, manifest: dict[str, Any]) -> None:
    """Warn of features of the same images that an earlier version wrote, which nothing reads any more."""
    same = ("format", "images", "ids", "content")
    earlier = []
    for path in sorted(folder.glob("*/manifest.json")):
        found = json.loads(path.read_bytes())
        if found.get("version", 0) < VERSION and all(found.get(name) == manifest[name] for name in same):
            earlier.append(path.parent.name)
    if earlier:
        warnings.warn(
            f"{folder} holds features of the same images that an earlier transferkit wrote; they are not read, but "
            f"computed anew. Delete {listed(earlier, 3)}",
            stacklevel=4,
        )
