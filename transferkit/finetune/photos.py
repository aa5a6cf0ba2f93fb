"""Data sets made from folders, files and images, and the names, ids and classes that a data set knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from transferkit.datasets import ImageListDataset
from transferkit.datasets._objects import truth_of as truth_of
from transferkit.errors import ArgumentError, DataError
from transferkit.sampler._source import tellers_of
from transferkit.scorer.image_scorer import BACKGROUND

PHOTO_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"])
"""Suffixes of the files that are read from a folder, in lower case."""


def as_photos(source: Any) -> Any:
    """Return photos to predict as a data set.

    Args:
        source: A data set of items with ``image``; a folder, which is searched with all its subfolders; a file; a PIL
            image, an array (H, W, C) or a tensor (C, H, W); or a list of files and images.

    Returns:
        ``source`` itself if it is a data set. Otherwise a data set; its ids are paths relative to the folder, the
        name of the file, or for a list the paths as given and the places of images.

    Raises:
        DataError: The folder holds no photo, or there is no such file.
        ArgumentError: ``source`` is none of these.

    Example:
        >>> import torch
        >>> as_photos([torch.zeros(3, 40, 30, dtype=torch.uint8)]).ids
        ('0',)
    """
    if isinstance(source, (str, Path)):
        return _of_path(Path(source))
    if isinstance(source, (Image.Image, Tensor)) or hasattr(source, "__array_interface__"):
        return ImageListDataset([source])
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise ArgumentError(
            "photos must be a data set, a folder, a file, an image, or a list of files and images, got "
            f"{type(source).__name__}"
        )
    if len(source) == 0:
        raise ArgumentError("photos must hold at least one photo, got none")
    if not isinstance(source, (list, tuple)) or hasattr(source[0], "image"):
        return source
    ids = [str(one) if isinstance(one, (str, Path)) else str(place) for place, one in enumerate(source)]
    return ImageListDataset(source, ids=ids)


def as_data_sets(photos: Any, count: int = 256) -> Iterator[Any]:
    """Yield photos to predict as data sets: those of an iterator ``count`` at a time, all others as one."""
    if hasattr(photos, "__len__") or not isinstance(photos, Iterable):
        yield as_photos(photos)
        return
    images, first = iter(photos), 0
    while lot := list(islice(images, count)):
        data = as_photos(lot)
        if isinstance(data, ImageListDataset):  # images without a name have their place in the whole
            named = (isinstance(one, (str, Path)) for one in lot)
            data.ids = tuple(
                str(one) if is_named else str(first + place)
                for place, (one, is_named) in enumerate(zip(lot, named, strict=True))
            )
        yield data
        first += len(lot)


def _of_path(path: Path) -> ImageListDataset:
    if path.is_file():
        return ImageListDataset([path], ids=[path.name])
    if not path.is_dir():
        raise DataError(f"no file or folder {path}")
    files = sorted(file for file in path.rglob("*") if _is_photo(file))
    if not files:
        raise DataError(f"no photo in {path}; looked for {', '.join(sorted(PHOTO_SUFFIXES))}")
    return ImageListDataset(files, ids=[file.relative_to(path).as_posix() for file in files])


def _is_photo(file: Path) -> bool:
    # macOS writes a "._" file of attributes beside each file that it copies to another file system.
    return file.suffix.lower() in PHOTO_SUFFIXES and not file.name.startswith("._") and file.is_file()


def class_names_of(photos: Any) -> tuple[str, ...] | None:
    """Return the class names of a data set or of those that it is a view of; ``None`` if it has none."""
    tellers = tellers_of(photos, "class_names")
    if not tellers:
        return None
    found = list(dict.fromkeys(tuple(data.class_names) for data, _ in tellers))
    if len(found) > 1:
        raise DataError(
            f"the photos come from data sets with different class names: {found[0]} and {found[1]}; make all of them "
            "with the same class_names"
        )
    return found[0]


def agreed_names(known: tuple[str, ...] | None, photos: Any) -> tuple[str, ...]:
    """Return the class names of a classifier and its photos, which must agree where both have them."""
    own = class_names_of(photos)
    if known is None and own is None:
        raise ArgumentError(
            "the photos have no class names; give SceneClassifier(class_names=[...]) or a data set with class_names"
        )
    if known is not None and own is not None and own != known:
        raise ArgumentError(
            f"class names must be the data set's: the classifier has {', '.join(known)}; the data set has "
            f"{', '.join(own)}; make a data set with the classifier's names, or a classifier with the data set's"
        )
    return known or own or ()


def with_background(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names with the background first.

    Args:
        names: (K - 1) or (K,) names, with or without ``"background"`` first.

    Example:
        >>> with_background(["cat", "dog"])
        ('background', 'cat', 'dog')
    """
    names = tuple(names)
    return names if names[:1] == (BACKGROUND,) else (BACKGROUND, *names)


def ids_of(photos: Any) -> tuple[str, ...]:
    """Return the photos' ids if the data set knows them without decoding photos, else their indices."""
    tellers = tellers_of(photos, "ids")
    if tellers is None:
        return tuple(map(str, range(len(photos))))
    return tuple(str(data.ids[place]) for data, place in tellers)
