"""Which photo is which: its content tells, read once and remembered by its file's size and times of change."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from transferkit.errors import DataError
from transferkit.file_index import FileIndex, Stamp, read_digest
from transferkit.progress import Progress, track
from transferkit.sampler._choose import BAD_IMAGE
from transferkit.sampler._source import PixelSource, require_photo, within
from transferkit.sampler._workers import Visit, Workers

Objects = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Boxes, classes, difficult and truncated of an image."""

_COLUMNS = ("boxes", "classes", "difficult", "truncated")


def digest_of(*parts: str | bytes | np.ndarray[Any, Any]) -> str:
    """Return a digest of texts and bytes, each with its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"%d:" % len(content))
        digest.update(memoryview(content))  # type: ignore[arg-type]  # numpy says it only from 3.12 on
    return digest.hexdigest()


def digest_of_tensor(tensor: Tensor) -> str:
    """Return a digest of a tensor's shape, type and bytes."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return digest_of(f"{tuple(tensor.shape)} {tensor.dtype}", values)


# What a data set tells of its images without decoding them.


def _tells(kind: type, name: str) -> bool:
    """Tell whether a class says ``name`` of the images that it hands out itself.

    One that hands out other pixels than the class it inherits from, or than what it is wrapped around, does not
    inherit what that says of its files.
    """
    for owner in kind.__mro__:
        if name in vars(owner):
            return True
        if "__getitem__" in vars(owner):
            return False
    return False


def teller(dataset: Any, index: int, name: str) -> tuple[Any, int] | None:
    """Return the data set that hands out an image and tells ``name`` of it, and the image's place there."""
    while not _tells(type(dataset), name):
        if getattr(type(dataset), "__getitem__", None) not in (Subset.__getitem__, ConcatDataset.__getitem__):
            return None
        dataset, index = within(dataset, index) or (dataset, index)
    return dataset, index


def ask(dataset: Any, index: int, name: str) -> Any:
    """Return what the data set that hands out an image tells of it by its method ``name``; ``None`` if nothing."""
    told = teller(dataset, index, name)
    return None if told is None else getattr(told[0], name)(told[1])


class Look(NamedTuple):
    """What is known of a photo.

    Attributes:
        content: The digest of its file, or of its pixels.
        laid: The digest of its patches.
        patches: How many those are.
        objects: Of a data set that tells them only with the pixels, as arrays; else it is asked each time.
        file: What the index is to remember, if the data set tells the file and a change of it would show.
    """

    content: str
    laid: str
    patches: int
    objects: tuple[Any, ...] | None
    file: tuple[str, Stamp, list[Any]] | None = None

    @property
    def name(self) -> str:
        """The name of its features."""
        return digest_of(self.content, self.laid)


def look_at(dataset: Any, pixels: PixelSource, index: int, item: Any = None) -> Look:
    """Look at a photo, whose annotated image is decoded only if the data set tells too little.

    Args:
        dataset: Of annotated images.
        pixels: Lays patches on them.
        index: The photo's place.
        item: Its annotated image, if it is at hand.
    """
    file, printed = _file_of(dataset, index), teller(dataset, index, "fingerprint")
    stamp, shows, digest = (None, False, "") if file is None else read_digest(Path(file[0]))
    own = teller(dataset, index, "objects") is None
    sized = teller(dataset, index, "image_size") is not None and pixels.proposals is None
    if item is None and (own or not sized or (file is None and printed is None)):
        item = dataset[index]
    if item is not None:
        require_photo(item)
    if item is None and pixels.grid is not None:
        size = tuple(ask(dataset, index, "image_size"))
        patches = pixels.grid(size)
    else:
        patches, size = pixels.patches(item), tuple(item.image.shape[-2:])
    if file is not None:
        content = digest_of(file[1], digest)
    elif printed is not None:
        kind = type(printed[0])
        content = digest_of(kind.__module__, kind.__qualname__, ask(dataset, index, "fingerprint"))
    else:
        content = digest_of_tensor(item.image)
    found = (_name_of(file), stamp, [content, *size]) if file and stamp and shows else None
    objects = tuple(_columns(item)) if own else None
    return Look(content, digest_of_tensor(patches), len(patches), objects, found)


def _file_of(dataset: Any, index: int) -> tuple[Path | str, str] | None:
    told = ask(dataset, index, "photo_file")
    match told:
        case None | (Path() | str(), str()):
            return cast("tuple[Path | str, str] | None", told)
    raise DataError(f"photo_file({index}) must return (path, text) or None, got {told!r}")


def _name_of(file: tuple[Path | str, str]) -> str:
    return f"{os.path.join(os.getcwd(), file[0])}\0{file[1]}"  # noqa: PTH109, PTH118 - a million are asked


def _columns(item: Any) -> Iterable[np.ndarray[Any, Any] | None]:
    """Yield an item's objects as arrays: thousands of tensors from other processes would each hold a file open."""
    for name in _COLUMNS:
        column = getattr(item, name, None)
        yield None if column is None else torch.as_tensor(column).detach().cpu().numpy().copy()


@dataclass(frozen=True, eq=False)
class _Looks:
    """What workers find out of photos, or what is wrong with them."""

    dataset: Any
    pixels: PixelSource

    def __getitem__(self, visit: Visit) -> Look | str:
        try:
            return look_at(self.dataset, self.pixels, visit[1])
        except BAD_IMAGE as error:
            return f"{type(error).__name__}: {error}"


class Photos:
    """The photos of a data set, each known by its content and its patches.

    Args:
        dataset: Of annotated images.
        pixels: Lays patches on them.
        index: Remembers digests of files.

    Attributes:
        looks: What is known of each photo that was looked at, or what is wrong with it.
    """

    def __init__(self, dataset: Any, pixels: PixelSource, index: FileIndex) -> None:
        self._dataset, self._pixels, self.index = dataset, pixels, index
        self._laid: dict[tuple[int, ...], tuple[str, int]] = {}
        self.looks: dict[int, Look | str] = {}
        self._sure_until = 0.0

    def look(
        self, images: Iterable[int], *, num_workers: int = 0, progress: Progress = False, again: bool = False
    ) -> None:
        """Look at those photos that are not known yet, and those whose files may have changed.

        Args:
            images: Places in the data set.
            num_workers: Processes that read and decode.
            progress: Counts photos.
            again: Read all of them, whatever the index says.
        """
        began, images = time.monotonic(), list(images)
        sure = began < self._sure_until
        stands = self.looks.__contains__ if sure else self._stands
        todo = [index for index in images if again or not stands(index)]
        took = time.monotonic() - began  # of a million half a minute, and several ask one after the other
        if took > 1 and len(images) == len(self._dataset):
            self._sure_until = began + 10 * took
        workers = Workers(_Looks(self._dataset, self._pixels), num_workers if todo else 0)
        looks: Iterable[Any] = workers.results([(0, index) for index in todo])
        if todo:
            looks = track(looks, progress, total=len(todo), description="photos", unit="photo")
        for index, look in zip(todo, looks, strict=True):
            self.looks[index] = look
            if isinstance(look, Look) and look.file:
                self.looks[index] = look._replace(file=None)  # half of what a million would take
                self.index.put(*look.file)
                self.index.save(at_once=False)
        self.index.save()

    def objects(self, index: int) -> Objects:
        """Return a photo's boxes, classes, difficult and truncated, as the data set has them now."""
        look = self.looks[index]
        if isinstance(look, str) or look.objects is None:
            return cast("Objects", ask(self._dataset, index, "objects"))
        columns = (None if column is None else torch.from_numpy(column) for column in look.objects)
        return cast("Objects", tuple(columns))

    def tells_file(self, index: int) -> bool:
        """Tell whether a photo is a file, which may change, rather than what the data set makes up."""
        return ask(self._dataset, index, "photo_file") is not None

    def _stands(self, index: int) -> bool:
        """Tell whether what is known of a photo holds, without reading it."""
        look, file = self.looks.get(index), _file_of(self._dataset, index)
        if file is None:
            return isinstance(look, Look)
        found = self.index.get(_name_of(file), file[0])
        if found is None or len(found) != 3:
            return False
        if isinstance(look, Look) and look.content == found[0]:
            return True
        if self._pixels.proposals or not self._pixels.grid or not teller(self._dataset, index, "objects"):
            return False
        self.looks[index] = Look(found[0], *self._lay(self._pixels.grid, (found[1], found[2])), None)
        return True

    def _lay(self, grid: Any, size: tuple[int, int]) -> tuple[str, int]:
        if size not in self._laid:
            patches = grid(size)
            self._laid[size] = digest_of_tensor(patches), len(patches)
        return self._laid[size]
