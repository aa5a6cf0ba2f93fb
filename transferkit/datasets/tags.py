"""Photos of which it is known what they show and not where: in folders by class, or listed in a table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferkit.datasets._objects import BadPhotos, BoxRule, checked_class_names, form_of, numbers_of
from transferkit.datasets.lists import ImageListDataset
from transferkit.datasets.voc_files import PhotoFiles, by_set, decoded
from transferkit.errors import DataError, MissingFileError, did_you_mean, listed, require

Table = str | Path | Iterable[Mapping[str, Any]] | Iterable[Sequence[Any]]


class TagDataset(ImageListDataset):
    """Photos and the names of the classes that each shows; what the data sets of this file have in common.

    Args:
        photos: The files.
        tags: Of each, names; none for a photo that shows none of the classes.
        class_names: The classes in the order of their numbers; by default all there are, sorted.
        skip_other_classes: Leave out names of any other class, instead of an error.
        bad_photos: What becomes of photos that are missing or cannot be read: ``"error"`` or ``"skip"``.
        unlisted: Photos of which nothing is known, to be counted.

    Attributes:
        num_empty: How many photos show none of the classes.
        unlisted: The photos that are there and not used, paths below their folder.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        tags: Sequence[Iterable[str]],
        *,
        class_names: Sequence[str] | None = None,
        skip_other_classes: bool = False,
        bad_photos: BadPhotos = "error",
        unlisted: Sequence[str] = (),
    ) -> None:
        known = {form_of(name): name for row in tags for name in row if form_of(name) != "background"}
        names = checked_class_names(class_names or sorted(known.values()), add_background=True)
        numbers = numbers_of(names)
        if (others := sorted(set(known) - set(numbers))) and not skip_other_classes:
            near = did_you_mean(others[0], names[1:])
            raise DataError(
                f"{listed(others)} not among {len(names) - 1} classes{near}; add to class_names, or leave out with "
                "skip_other_classes=True"
            )
        rows = [[numbers[form_of(name)] for name in row if form_of(name) in numbers] for row in tags]
        super().__init__(photos, image_labels=rows, class_names=names, bad_photos=bad_photos)
        self.num_empty = int((~self.presence().present.any(dim=1)).sum())
        self.unlisted = list(unlisted)

    def __repr__(self) -> str:
        none = f"; {self.num_empty} show none of them" * (self.num_empty > 0)
        unlisted = f"; {len(self.unlisted)} more photos are not used" * (len(self.unlisted) > 0)
        return f"{super().__repr__()[:-1]}{none}{unlisted})"


class ClassFolderDataset(TagDataset):
    """Photos in folders that are called as what they show: ``cat/1.jpg``; a folder ``background`` shows no class.

    Args:
        folder: Holds the folders, or ``train``, ``val`` and ``test`` that hold them.
        image_set: The one to read, where there are several.
        options: ``class_names``, ``skip_other_classes`` and ``bad_photos``, as in :class:`TableDataset`.

    Raises:
        MissingFileError: No photo in a folder of a class.
        DataError: Photos that cannot be used; lists all.
    """

    def __init__(self, folder: Path | str, image_set: str = "train", **options: Any) -> None:
        sets = by_set(PhotoFiles(Path(folder)).paths)
        every = {path.split("/")[0] for paths in sets.values() for path in paths.values() if "/" in path}
        found = {path: rest.split("/")[0] for path, rest in sets.get(image_set, {}).items() if "/" in rest}
        if not found:
            raise MissingFileError(
                f"no photo in a folder of a class in {folder}; there are sets {', '.join(sets)}"
            )
        loose = sorted(set(sets[image_set]) - set(found))
        options.setdefault("class_names", sorted(every - {"background"}))
        tags = [[name] for name in found.values()]
        super().__init__([Path(folder, path) for path in found], tags, unlisted=loose, **options)


class TableDataset(TagDataset):
    """Photos and the classes that a table lists for each, none for an empty cell.

    The table has a column of files, and one of class names, several in a cell with ``;``, ``,`` or ``|`` between; or
    one column for each class with 0 and 1. Rows of one photo are joined. Photos that are not listed are not used.

    Args:
        table: A CSV file (comma, semicolon or tab), or rows: sequences, the first of which may be the header, or
            mappings, as ``frame.to_dict("records")`` of pandas gives.
        images: The folder of the photos; by default the file's. A photo is found by its path, the end of it, or its
            name with or without ending.
        file_column: The column of files; by default the one whose cells are photos.
        label_columns: The others that count; by default one called label, class, tag or category, or all.
        separators: What may stand between names in a cell.
        class_names: (K - 1,) or (K,) names in the order of their numbers; by default all there are, sorted.
        skip_other_classes: Leave out names of any other class, instead of an error.
        bad_photos: What becomes of photos that are missing or cannot be read: ``"error"`` or ``"skip"``.

    Raises:
        MissingFileError: No such table.
        DataError: The table is not as above, or photos that cannot be used; lists all.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in "abc":
        ...         Image.new("RGB", (9, 9)).save(f"{folder}/{name}.png")
        ...     TableDataset([("file", "labels"), ("a.png", "cat;dog"), ("b.png", "")], folder)
        TableDataset(2 images, 2 classes; 1 show none of them; 1 more photos are not used)
    """

    def __init__(
        self,
        table: Table,
        images: Path | str | None = None,
        *,
        file_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        separators: str = ";,|",
        class_names: Sequence[str] | None = None,
        skip_other_classes: bool = False,
        bad_photos: BadPhotos = "error",
    ) -> None:
        is_path = isinstance(table, (str, Path))
        require(images is not None or is_path, "images", "the folder of the photos of rows", images)
        files = PhotoFiles(Path(images or Path(str(table)).parent))
        header, rows = _with_header(_rows(table), files, file_column)
        chosen = _file_column(header, rows, files, file_column)
        named = _label_columns(header, rows, chosen, label_columns)
        rule = BoxRule("error", bad_photos)
        tags: dict[Path, dict[str, None]] = {}
        for place, row in enumerate(rows, start=2):
            try:
                path, found = files.find(row[chosen]), _tags(row, named, header, separators)
                tags.setdefault(path, {}).update(dict.fromkeys(found))
            except (DataError, IndexError) as error:
                rule.photo(f"row {place}: {error}")
        rule.raise_problems("the table cannot be used")
        unlisted = [path for path in files.paths if files.folder / path not in tags]
        super().__init__(
            list(tags),
            list(tags.values()),
            class_names=class_names,
            skip_other_classes=skip_other_classes,
            bad_photos=bad_photos,
            unlisted=unlisted,
        )
        self.left_out += tuple(rule.left_out)


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_LABELS = re.compile(r"(image_?)?(label|class|tag|categor)(es|s|y|ies|_?names?)?", re.IGNORECASE)


def _rows(table: Table) -> list[list[str]]:
    if isinstance(table, (str, Path)):
        if not Path(table).is_file():
            raise MissingFileError(f"no table at {table}")
        try:
            text = decoded(Path(table).read_bytes(), "utf-8")
            delimiter = max(",;\t", key=text.partition("\n")[0].count)
            found: list[Any] = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        except (DataError, csv.Error) as error:
            raise DataError(f"{table} is no table: {error}") from error
    else:
        found = list(table)
    if found and isinstance(found[0], Mapping):
        found = [list(found[0]), *([row.get(name) for name in found[0]] for row in found)]
    rows = [["" if cell is None or cell != cell else str(cell).strip() for cell in row] for row in found]
    return [row for row in rows if any(row)]


def _with_header(
    rows: list[list[str]], files: PhotoFiles, file_column: str | None
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the other rows; one of numbers where the first row has a photo."""
    first = rows[0] if rows else []
    if file_column is None and any(files.has(cell) for cell in first):
        return [f"column {place}" for place in range(1, len(first) + 1)], rows
    if len(rows) < 2 or len(set(first)) < len(first):
        raise DataError(f"the table has no rows, or columns of one name: {listed(first)}")
    return first, rows[1:]


def _file_column(header: list[str], rows: list[list[str]], files: PhotoFiles, name: str | None) -> int:
    if name is not None:
        require(name in header, "file_column", f"one of {listed(header)}", name)
        return header.index(name)
    found = [sum(files.has(cell) for cell in column) for column in zip(*rows[:50], strict=False)]
    if not any(found) or found.count(max(found)) > 1:
        raise DataError(
            f"no column of the table, or several, are photos in {files.folder}: {listed(header)}; say file_column"
        )
    return found.index(max(found))


def _label_columns(
    header: list[str], rows: list[list[str]], files: int, names: Sequence[str] | None
) -> dict[int, bool]:
    """Return the columns that tell classes, and of each whether it holds 0 and 1 for the class of its name."""
    others = [place for place in range(len(header)) if place != files]
    if names is not None:
        require(set(names) <= set(header), "label_columns", f"some of {listed(header)}", names)
        others = [header.index(name) for name in names]
    else:
        others = [place for place in others if _LABELS.fullmatch(header[place])] or others
    flags = {
        place: not _LABELS.fullmatch(header[place])
        and all(row[place].lower() in _FLAGS for row in rows if place < len(row))
        for place in others
    }
    if names is None and (not others or (len(others) > 1 and not all(flags.values()))):
        raise DataError(f"which columns are labels? There are {listed(header)}; say label_columns=[...]")
    return flags


def _tags(row: list[str], columns: dict[int, bool], header: list[str], separators: str) -> list[str]:
    if len(row) != len(header):
        raise DataError(f"{len(row)} cells under {len(header)} columns")
    found = []
    for place, is_flag in columns.items():
        if is_flag:
            found += [header[place]] * _FLAGS[row[place].lower()]
        else:
            found += [
                name.strip() for name in re.split(f"[{re.escape(separators)}]", row[place]) if name.strip()
            ]
    return found
