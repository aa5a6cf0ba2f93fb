"""A folder of photos in one line, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from transferkit.datasets.coco import CocoDataset
from transferkit.datasets.tags import ClassFolderDataset, TableDataset
from transferkit.datasets.voc import FolderDataset, VOCDataset, find_names
from transferkit.datasets.voc_files import by_set, files_below, is_photo, place_of
from transferkit.datasets.yolo import YoloDataset, image_sets_of
from transferkit.errors import DataError, MissingFileError, listed, require
from transferkit.file_index import remembering
from transferkit.files import is_file


@dataclass(frozen=True)
class PhotoFolder:
    """What a folder holds.

    Attributes:
        path: The folder, or the file that describes it.
        format: ``"voc"``, ``"coco"``, ``"yolo"``, ``"xml"``, ``"table"`` or ``"classes"``.
        datasets: The data sets by image set: ``"train"``, and ``"val"`` and ``"test"`` where there are such.
    """

    path: Path
    format: str
    datasets: dict[str, Any]

    @property
    def train(self) -> Any:
        """The data set to train on.

        Raises:
            MissingFileError: There is none.
        """
        if "train" not in self.datasets:
            raise MissingFileError(f"{self.path} has no image set 'train', only {', '.join(self.datasets)}")
        return self.datasets["train"]

    @property
    def test(self) -> Any:
        """The data set to test on: ``"test"``, else ``"val"``, else ``None``, where :func:`split` makes one."""
        return self.datasets.get("test", self.datasets.get("val"))

    def __str__(self) -> str:
        sets = "; ".join(f"{name}: {data!r}" for name, data in self.datasets.items())
        return f"{self.path} ({self.format}): {sets}"


def open_photos(
    path: Path | str, format: str | None = None, *, index: Path | None = None, **options: Any
) -> PhotoFolder:
    """Return the data sets of a folder of photos, whose format is found by what is in it.

    Args:
        path: A VOCdevkit; a folder of YOLO, COCO, photos with XML, photos with a CSV, or folders by class; or such a
            COCO, CSV or YAML file.
        format: As in :class:`PhotoFolder`, where several would fit.
        index: A file that remembers what annotations in XML and headers of photos say, as :class:`VOCDataset` has it.
        options: For the data sets: ``bad_boxes``, ``bad_photos``, ``class_names`` and so on; what has no meaning for
            the format, such as ``bad_boxes`` for photos without boxes, is left out.

    Raises:
        MissingFileError: No such folder, or nothing in it says what its photos show.
        DataError: Several formats fit, or the data cannot be used.

    Example:
        >>> import tempfile
        >>> from transferkit.datasets import write_demo_devkit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_demo_devkit(folder, num_train=9, num_test=2)
        ...     photos = open_photos(folder)
        >>> photos.format, len(photos.train), len(photos.test)
        ('voc', 9, 2)
    """
    path = Path(path)
    name, files = chosen_format(path, format)
    options = {key: value for key, value in options.items() if key not in _MEANINGLESS.get(name, ())}
    with remembering(index):
        return PhotoFolder(path, name, _READERS[name](path if path.is_dir() else path.parent, files, options))


_MEANINGLESS = {
    "yolo": ("progress", "boxes_on"),
    "table": ("progress", "boxes_on", "bad_boxes"),
    "classes": ("progress", "boxes_on", "bad_boxes"),
}


def chosen_format(path: Path, format: str | None) -> tuple[str, list[str]]:
    """Return the format that is to be read, and the files that say so, or raise as :func:`open_photos` does."""
    require(format in (None, *_READERS), "format", f"one of {', '.join(_READERS)}", format)
    found = formats_of(path)
    if format is None and len(found) > 1:
        shown = "".join(f"\n  - {name!r}: {listed(files, 3)}" for name, files in found.items())
        raise DataError(f"{path} may be read in several ways; say which, format= (--format in a shell):{shown}")
    name = format or next(iter(found), "")
    if name not in found:
        what = f"nothing of format {name!r}" if name else "nothing that says what photos show"
        raise MissingFileError(f"{path} holds {what}; {_WAYS}")
    return name, found[name]


_WAYS = "put photos into folders by class, or beside them XML, YOLO's texts, COCO's JSON, or a CSV of labels"


def formats_of(path: Path) -> dict[str, list[str]]:
    """Return the formats that fit a folder or file, each with the files that say so, below the folder."""
    if not path.exists():
        raise MissingFileError(f"no file or folder {path}")
    folder, files = (path, sorted(files_below(path))) if path.is_dir() else (path.parent, [path.name])
    photos = [file for file in files if is_photo(file)]
    found = {
        "voc": sorted({home[1] or "." for file in files if (home := _VOC.fullmatch(file))}),
        "coco": [file for file in files if file.lower().endswith(".json") and _has(folder / file, *_COCO)],
        "yolo": [file for file in files if _DATA.fullmatch(file) and _has(folder / file, b"names:")],
        "table": [file for file in files if file.lower().endswith((".csv", ".tsv"))],
    }
    devkits = tuple("" if home == "." else f"{home}/" for home in found["voc"])
    others = [file for file in files if not devkits or not file.startswith(devkits)]
    found["xml"] = [file for file in others if file.lower().endswith(".xml")]
    if not any(found["yolo"]):
        places = {place_of(str(PurePosixPath(photo).with_suffix(".txt"))) for photo in photos}
        texts = [file for file in files if file.endswith(".txt") and place_of(file) in places]
        found["yolo"] = texts if any(_has(folder / file, _LABELS) for file in texts[:50]) else []
    if not any(found.values()):
        rests = [place_of(rest) for paths in by_set(photos).values() for rest in paths.values()]
        found["classes"] = photos if all("/" in rest for rest in rests) else []
    return {name: files for name, files in found.items() if files}


_VOC = re.compile(r"(?:(.*)/)?ImageSets/Main/[^/]+\.txt")
_DATA = re.compile(r"[^/]+\.ya?ml")
_LABELS = rb"\A\s*\d+( [-+.\deE]+){4}"
_COCO = (rb'"images"', rb'"annotations"', rb'"categories"')


def _has(file: Path, *words: bytes) -> bool:
    data = file.read_bytes() if is_file(file) else b""  # a pipe would be waited for
    return all(re.search(word, data) for word in words)


# Each reads a folder: the files that tell its format, and the options of its data sets.


def _voc(folder: Path, homes: list[str], options: dict[str, Any]) -> dict[str, Any]:
    home = folder / _only(folder, homes)
    there = {file.stem for file in (home / "ImageSets/Main").glob("[!.]*.txt")}
    train = ["trainval"] if "trainval" in there else ["train", "val"]
    sets = [(name.removesuffix("val") or name, name) for name in [*train, "test"] if name in there]
    if "class_names" not in options:
        options["class_names"] = find_names(home / "Annotations", skip_bad=True)
    return _each(sets or [("train", "trainval")], lambda name: VOCDataset(home, image_set=name, **options))


def _coco(folder: Path, files: list[str], options: dict[str, Any]) -> dict[str, Any]:
    def read(file: str) -> CocoDataset:
        has_photos = any(map(is_photo, files_below((folder / file).parent)))
        return CocoDataset(folder / file, (folder / file).parent if has_photos else folder, **options)

    return _each(_one_each(folder, files), read)


def _yolo(folder: Path, files: list[str], options: dict[str, Any]) -> dict[str, Any]:
    path = folder / _only(folder, files) if files[0].endswith("ml") else folder
    sets = image_sets_of(path) or by_set(files)
    return _each(zip(sets, sets, strict=True), lambda name: YoloDataset(path, name, **options))


def _xml(folder: Path, files: list[str], options: dict[str, Any]) -> dict[str, Any]:
    sets = by_set([place_of(file) for file in files])
    return _each(zip(sets, sets, strict=True), lambda name: FolderDataset(folder, name, **options))


def _classes(folder: Path, photos: list[str], options: dict[str, Any]) -> dict[str, Any]:
    sets = by_set(photos)
    return _each(zip(sets, sets, strict=True), lambda name: ClassFolderDataset(folder, name, **options))


def _table(folder: Path, files: list[str], options: dict[str, Any]) -> dict[str, Any]:
    def read(file: str) -> TableDataset:
        return TableDataset(folder / file, **options)

    sets = _one_each(folder, files)
    found = _each(sets, read)
    if "class_names" not in options and len(found) > 1:  # those of all sets
        options["class_names"] = sorted({name for data in found.values() for name in data.class_names[1:]})
        found = _each(sets, read)
    if len({Path(file).parent for _, file in sets}) == 1:  # of one folder of photos
        unlisted = sorted(set.intersection(*(set(data.unlisted) for data in found.values())))
        for data in found.values():
            data.unlisted = unlisted
    return found


def _each(sets: Iterable[tuple[str, str]], read: Callable[[str], Any]) -> dict[str, Any]:
    """Return what is read of each image set, or raise what is wrong with all."""
    found, errors = {}, []
    for name, what in sets:
        try:
            found[name] = read(what)
        except DataError as error:
            errors.append(error)
    if errors:
        together = DataError("\n".join(dict.fromkeys(map(str, errors))))
        together.problems = tuple(each for error in errors for each in error.problems or [str(error)])
        raise errors[0] if len(errors) == 1 else together
    return found


def _one_each(folder: Path, files: list[str]) -> list[tuple[str, str]]:
    """Return the only file of each image set."""
    return [(name, _only(folder, [*paths])) for name, paths in by_set(files, stems=True).items()]


def _only(folder: Path, files: list[str]) -> str:
    if len(files) > 1:
        raise DataError(f"{folder} has {listed(files, 3)} for one image set; name one of them")
    return files[0]


_READERS: dict[str, Callable[[Path, list[str], dict[str, Any]], dict[str, Any]]] = {
    "voc": _voc,
    "coco": _coco,
    "yolo": _yolo,
    "xml": _xml,
    "table": _table,
    "classes": _classes,
}
