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
from transferkit.datasets.voc_files import PhotoFiles, by_set, decoded, place_of
from transferkit.errors import DataError, MissingFileError, did_you_mean, listed, require

Table = str | Path | Iterable[Mapping[str, Any]] | Iterable[Sequence[Any]]


class TagDataset(ImageListDataset):
    """Photos and the names of the classes that each shows; what the data sets of this file have in common.

    Args:
        photos: The files.
        tags: Of each, names; none for a photo that shows none of the classes.
        class_names: (K - 1,) or (K,) names in the order of their numbers; by default all there are, sorted.
        skip_other_classes: Leave out names of any other class, instead of an error.
        bad_photos: What becomes of photos that are missing or cannot be read: ``"error"`` or ``"skip"``.

    Attributes:
        num_empty: How many photos show none of the classes.
        unlisted: The photos that are there and not used, paths below their folder.
    """

    unlisted: Sequence[str] = ()

    def __init__(
        self,
        photos: Sequence[Path],
        tags: Sequence[Iterable[str]],
        class_names: Sequence[str] | None = None,
        skip_other_classes: bool = False,
        bad_photos: BadPhotos = "error",
    ) -> None:
        known = {form_of(name): name for row in tags for name in row if form_of(name) != "background"}
        names = checked_class_names(class_names or sorted(known.values()), add_background=True)
        numbers = numbers_of(names)
        if (others := sorted(set(known) - set(numbers))) and not skip_other_classes:
            advice = f"{did_you_mean(others[0], names[1:])}; skip_other_classes=True leaves them out"
            raise DataError(f"{listed(others)} not among {len(names) - 1} classes{advice}")
        rows = [[numbers[form_of(name)] for name in row if form_of(name) in numbers] for row in tags]
        super().__init__(photos, image_labels=rows, class_names=names, bad_photos=bad_photos)
        self.num_empty = int((~self.presence().present.any(dim=1)).sum())

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
        places = {path: place_of(rest) for paths in sets.values() for path, rest in paths.items()}
        classes = {path: place.split("/")[0] for path, place in places.items() if "/" in place}
        found = {path: classes[path] for path in sets.get(image_set, {}) if path in classes}
        if not found:
            raise MissingFileError(
                f"no photo in a folder of a class in {folder}, of the sets {', '.join(sets)}"
            )
        options.setdefault("class_names", sorted({*classes.values()} - {"background"}))
        super().__init__([Path(folder, path) for path in found], [[name] for name in found.values()], **options)
        self.unlisted = sorted(set(sets[image_set]) - set(found))


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
        options: ``class_names``, by default all there are, sorted; ``skip_other_classes``, which leaves out names of
            any other; and ``bad_photos``, what becomes of photos that are missing or cannot be read: ``"error"`` or
            ``"skip"``.

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
        **options: Any,
    ) -> None:
        is_path = isinstance(table, (str, Path))
        require(images is not None or is_path, "images", "the folder of the photos of rows", images)
        files = PhotoFiles(Path(images or Path(str(table)).parent))
        header, *rows = _rows(table, files, file_column)
        chosen, columns = _columns(header, rows, files, file_column, label_columns)
        rule = BoxRule("error", options.get("bad_photos", "error"))
        tags: dict[Path, dict[str, None]] = {}
        for row in rows:
            try:
                if len(row) != len(header):
                    raise DataError(f"{len(row)} cells under {len(header)} columns")
                names = _tags(row, header, columns, separators)
                tags.setdefault(files.find(row[chosen]), {}).update(dict.fromkeys(names))
            except DataError as error:
                rule.photo(f"row {','.join(row)!r:.60}: {error}")
        rule.raise_problems("the table cannot be used")
        super().__init__(list(tags), list(tags.values()), **options)
        self.unlisted = [path for path in files.paths if files.folder / path not in tags]
        self.left_out += tuple(rule.left_out)


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_LABELS = re.compile(r"(image_?)?(label|class|tag|categor)(es|s|y|ies|_?names?)?", re.IGNORECASE)


def _rows(table: Table, files: PhotoFiles, file_column: str | None) -> list[list[str]]:
    """Return the header, numbers where the first row has a photo, and the rows, none of them empty."""
    found: list[Any] = _read(Path(table)) if isinstance(table, (str, Path)) else list(table)
    if found and isinstance(found[0], Mapping):
        found = [list(found[0]), *([row.get(name) for name in found[0]] for row in found)]
    cells = [["" if cell is None or cell != cell else str(cell).strip() for cell in row] for row in found]
    rows = [row for row in cells if any(row)]
    if file_column is None and rows and any(files.has(cell) for cell in rows[0]):
        rows.insert(0, [f"column {place}" for place in range(1, len(rows[0]) + 1)])
    if len(rows) < 2 or len(set(rows[0])) < len(rows[0]):
        raise DataError(f"the table has no rows, or columns of one name: {rows[:1]!r:.200}")
    return rows


def _read(path: Path) -> list[Any]:
    if not path.is_file():
        raise MissingFileError(f"no table at {path}")
    try:
        text = decoded(path.read_bytes(), "utf-8")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (DataError, csv.Error) as error:
        raise DataError(f"{path} is no table: {error}") from error


def _columns(
    header: list[str], rows: list[list[str]], files: PhotoFiles, file: str | None, labels: Sequence[str] | None
) -> tuple[int, dict[int, bool]]:
    """Return the column of files, and those of classes, each with whether it has 0 and 1 for the one of its name."""
    width = range(len(header))
    photos = [sum(place < len(row) and files.has(row[place]) for row in rows[:50]) for place in width]
    chosen = [
        place for place in width if (photos[place] == max(photos) if file is None else header[place] == file)
    ]
    others = [place for place in width if place not in chosen and (labels is None or header[place] in labels)]
    if labels is None:
        others = [place for place in others if _LABELS.fullmatch(header[place])] or others
    cells = {place: {row[place].lower() for row in rows if place < len(row)} for place in others}
    flags = {place: not _LABELS.fullmatch(header[place]) and cells[place] <= {*_FLAGS} for place in others}
    clear = labels is not None or all(flags.values()) or len(flags) == 1
    if len(chosen) != 1 or not any(photos) or not flags or not clear:
        raise DataError(
            f"which columns are files in {files.folder}, and labels? There are {listed(header)}; "
            "say file_column='...' and label_columns=['...']"
        )
    return chosen[0], flags


def _tags(row: list[str], header: list[str], columns: dict[int, bool], separators: str) -> list[str]:
    """Return the classes that a row names."""
    flagged = [header[place] for place, is_flag in columns.items() if is_flag and _FLAGS[row[place].lower()]]
    cells = [row[place] for place, is_flag in columns.items() if not is_flag]
    named = [name.strip() for cell in cells for name in re.split(f"[{re.escape(separators)}]", cell)]
    return [*flagged, *filter(None, named)]
