"""The folders of a VOCdevkit: where a year's data lies, which images a set lists, where each photo is."""

from __future__ import annotations

from pathlib import Path

from transferkit.errors import DataError, MissingFileError, did_you_mean

_PARTS = ("Annotations", "ImageSets", "JPEGImages")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def find_voc_folder(root: Path | str, year: str = "2007") -> Path:
    """Return the folder ``VOC<year>`` in or around ``root``.

    Args:
        root: The folder that holds ``VOCdevkit``, the ``VOCdevkit`` itself, the ``VOC<year>`` folder in it, or
            any folder of one's own with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        year: ``"2007"``, ``"2012"``, or whatever follows ``VOC`` in the folder's name.

    Raises:
        MissingFileError: No such folder.
        DataError: Half of one; says which parts are missing.
    """
    root = Path(root)
    places = (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root)
    for folder in places:
        missing = [part for part in _PARTS if not (folder / part).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(_PARTS):
            raise DataError(f"{folder} is only a part of a VOC folder: it has no {' and no '.join(missing)}")
    raise MissingFileError(
        f"no VOC data for {year}: {root} is not a folder with {', '.join(_PARTS)} and holds no "
        f"VOCdevkit/VOC{year} or VOC{year}; transferkit.datasets.fetch_voc({year!r}) downloads it, and photos of "
        "your own go into these three folders, whatever the year is called"
    )


def read_image_set(folder: Path, image_set: str) -> list[str]:
    """Return the image ids that ``ImageSets/Main/<image_set>.txt`` lists, in its order, each once.

    Only the first word of a line counts, so that per-class files (``dog_trainval``: an id and 1, 0 or -1) and
    the other tasks' files (``Layout/trainval``: an id and an object) can be read too.

    Args:
        folder: A ``VOC<year>`` folder.
        image_set: The file's name without ``.txt``; below ``ImageSets`` if it has a slash, else below its
            ``Main``.

    Raises:
        MissingFileError: No such file; offers those that are there.
        DataError: The file is not text, or lists nothing.
    """
    sets = folder / "ImageSets"
    path = (sets if "/" in image_set else sets / "Main") / f"{image_set}.txt"
    if not path.is_file():
        raise MissingFileError(f"no image set {image_set!r}: {path} is missing{_offer(path)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a list of image ids: {error}") from error
    ids = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not ids:
        raise DataError(f"{path} lists no image")
    return ids


def find_photos(folder: Path) -> dict[str, str]:
    """Return the photos of ``JPEGImages`` as file names by id, from one listing of the folder.

    VOC's own are all ``<id>.jpg``; ``.jpeg`` and ``.png`` serve where there is no such file.
    """
    photos: dict[str, str] = {}
    files = [Path(name.name) for name in (folder / "JPEGImages").iterdir()]
    for suffix in reversed(_SUFFIXES):
        photos.update({file.stem: file.name for file in files if file.suffix.lower() == suffix})
    return photos


def _offer(path: Path) -> str:
    there = sorted(file.stem for file in path.parent.glob("*.txt"))
    per_class = "_" in path.stem
    plain = [name for name in there if per_class or "_" not in name] or there
    near = did_you_mean(path.stem, plain)
    return near or (f"; there are {', '.join(plain[:8])}" if plain else f"; {path.parent} has no .txt file")
