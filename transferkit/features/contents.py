"""What caches need, hold and no longer use, and the folders that they lie in."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.errors import DataError, OutputError, listed
from transferkit.features._identity import agree, key_of
from transferkit.features._photos import digest_of
from transferkit.features.shards import HEADER, SUFFIX, move_shard
from transferkit.files import faults_named, write_text
from transferkit.locks import lock_folder
from transferkit.sampler._choose import BAD_IMAGE
from transferkit.sampler._source import PixelSource

if TYPE_CHECKING:
    from transferkit.features.cache import FeatureCache

_LOOKED_AT = 8  # images that are decoded where only they tell how many patches they have

FORMAT = "transferkit-features"

VERSION = 3  # 1, 2: features were found by a photo's place in its data set, and came with its labels

MANIFEST, INDEX, PHOTOS = "manifest.json", "shards.index", "photos.index"

# What a cache writes, now and in earlier versions; nothing else is deleted.
_FOLDER = re.compile("[0-9a-f]{32}(-[0-9a-f]{8})?")
_FILE = re.compile(r"manifest\.json|shards\.(index|json)|[0-9a-f]{32}\.features|\d{7,}\.(npy|json)|.*\.part")


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
    with suppress(*BAD_IMAGE):  # one whose size cannot be read is no reason to stop here
        available = pixels.available(dataset)
        if available is not None:
            return sum(available), True
    some = range(0, len(dataset), max(1, len(dataset) // _LOOKED_AT))
    found = [0]
    for index in some:
        with suppress(*BAD_IMAGE):
            found.append(len(pixels.patches(dataset[index])))
    return math.ceil(sum(found) * len(dataset) / len(some)), len(found) > len(dataset)


def bytes_for(images: int, patches: int, shape: tuple[int, ...], item_size: int) -> int:
    """Return what features and their patches take."""
    return patches * (math.prod(shape) * item_size + 32) + HEADER * images


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


# Folders, each of the features that one network computes.


def find_folder(root: Path, description: Mapping[str, Any], probe: Sequence[float], half: bool) -> Path:
    """Return the folder of a network's features, which is made if it is not there.

    Networks of one description may still compute different features, so each has a folder of its own, which a probe
    tells apart.

    Raises:
        OutputError: It cannot be written.
    """
    key = key_of(dict(description))
    manifest = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **description}))
    own = root / f"{key}-{digest_of(json.dumps(probe))[:8]}"
    for folder in sorted(root.glob(f"{key}-*")):
        found = _manifest(folder)
        other = found.pop("probe", None)
        if found == manifest and isinstance(other, list) and agree(other, probe, half):
            return folder
    text = json.dumps({**manifest, "probe": list(probe)}, indent=1) + "\n"
    with faults_named(own, "; choose another folder"):
        own.mkdir(parents=True, exist_ok=True)
        _warn_of_earlier_versions(root)
        write_text(own / MANIFEST, text)
    return own


def _manifest(folder: Path) -> dict[str, Any]:
    """Return a folder's manifest, nothing where it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / MANIFEST).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _warn_of_earlier_versions(root: Path) -> None:
    """Warn of features that an earlier version wrote, which nothing reads any more."""
    versions = {path.parent.name: _manifest(path.parent) for path in sorted(root.glob(f"*/{MANIFEST}"))}
    earlier = [
        name
        for name, found in versions.items()
        if found.get("format") == FORMAT and found.get("version") in (1, 2)
    ]
    if earlier:
        warnings.warn(
            f"{root} holds features that an earlier transferkit wrote, which do not tell what photos they are of; "
            f"they are not read, but computed anew. Delete {listed(earlier, 3)}",
            stacklevel=5,
        )


@dataclass(frozen=True)
class CacheContents:
    """What the caches in a folder hold.

    Attributes:
        folder: Where they are.
        used: Files that the caches in use read, with their bytes.
        unused: All others.
    """

    folder: Path
    used: Mapping[Path, int]
    unused: Mapping[Path, int]

    def __str__(self) -> str:
        used, unused = (
            f"{readable(sum(some.values()))} in {len(some):,} files" for some in (self.used, self.unused)
        )
        return f"{self.folder} holds {used} that are in use, and {unused} that are not"

    def delete_unused(self) -> int:
        """Delete what no cache in use reads, and return how many bytes that were.

        Raises:
            OutputError: A job is writing there, or a file cannot be deleted.
        """
        for folder in sorted({path.parent for path in self.unused}):
            with faults_named(folder), lock_folder(folder):
                for path in self.unused:
                    if path.parent == folder:
                        path.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
        return sum(self.unused.values())


def cache_contents(folder: Path | str, in_use: Iterable[FeatureCache] = ()) -> CacheContents:
    """Return what the caches in a folder hold, of whatever networks and photos, and what of it nothing uses.

    Args:
        folder: As :class:`FeatureCache` has it.
        in_use: The caches, of all data sets and networks, that are still wanted.

    Example:
        >>> print(cache_contents("nowhere"))
        nowhere holds 0 bytes in 0 files that are in use, and 0 bytes in 0 files that are not
    """
    root, wanted = Path(folder), {path for cache in in_use for path in cache.files()}
    files = {
        path: path.lstat().st_size
        for inner in (root.iterdir() if root.is_dir() else ())
        if _FOLDER.fullmatch(inner.name) and inner.is_dir() and not inner.is_symlink()
        for path in inner.iterdir()
        if _FILE.fullmatch(path.name)
    }
    used = {path: size for path, size in files.items() if path in wanted}
    return CacheContents(root, used, {path: size for path, size in files.items() if path not in wanted})


def join_caches(folder: Path | str, parts: Iterable[Path | str]) -> int:
    """Move the features in the folders of several jobs to one folder, and return how many photos' they were.

    Args:
        folder: As :class:`FeatureCache` has it; it may hold features already.
        parts: Such folders too, on the same disk; what they hold of other kinds stays there.

    Raises:
        OutputError: A job is writing there, or a file cannot be moved.
        DataError: A part holds no features that this version reads.
    """
    moved = 0
    for part in map(Path, parts):
        manifests = {
            inner: _manifest(inner) for inner in sorted(part.glob("*")) if _FOLDER.fullmatch(inner.name)
        }
        own = {
            inner: told
            for inner, told in manifests.items()
            if told.get("version") == VERSION and "probe" in told
        }
        if not own:
            raise DataError(f"{part} holds no features; it is no cache, or one of another version")
        for inner, told in own.items():
            described = {key: value for key, value in told.items() if key not in ("format", "version", "probe")}
            home = find_folder(Path(folder), described, told["probe"], bool(described.get("half")))
            with faults_named(home), lock_folder(inner), lock_folder(home, wait=math.inf):
                for file in inner.glob("*" + SUFFIX):
                    move_shard(file, home)
                    moved += 1
    return moved
