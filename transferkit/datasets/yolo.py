"""Data sets in YOLO's format: a text file of boxes for each photo, and ``data.yaml`` or ``classes.txt``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transferkit.datasets._objects import BadBoxes, BadPhotos, BoxRule, checked_class_names
from transferkit.datasets._photo import photo_size
from transferkit.datasets.lists import ImageListDataset
from transferkit.datasets.voc_files import PhotoFiles, by_set, files_below, float_of, is_photo
from transferkit.errors import DataError, MissingFileError


class YoloDataset(ImageListDataset):
    """Photos and boxes as YOLO's programs and exports have them.

    A photo's labels are in the file of its name and the ending ``.txt``, beside it, or where ``images`` in its path
    is ``labels``. A line is a class's number and a box: center, width and height, as shares of the photo's as shown.
    A polygon becomes the box around it, and of key points only the box is taken. A photo without a file of labels, or
    with an empty one, has no object.

    Args:
        path: ``data.yaml``, or a folder that holds it. Without one, all photos of the folder are the set ``"train"``,
            and their classes are in ``classes.txt``, ``obj.names`` or given.
        image_set: ``"train"``, ``"val"`` or ``"test"``, as the file calls it.
        class_names: (K - 1,) or (K,) names in the order of the numbers, ``"background"`` first or not there.
        bad_boxes: As in :class:`ImageListDataset`.
        bad_photos: What becomes of photos that cannot be read, or whose labels cannot: ``"error"`` or ``"skip"``.

    Attributes:
        without_labels: How many photos have no file of labels.

    Raises:
        MissingFileError: No such file, no photos, or no labels at all.
        DataError: What is written is not YOLO's format; lists all.
    """

    def __init__(
        self,
        path: Path | str,
        image_set: str = "train",
        *,
        class_names: Sequence[str] | None = None,
        bad_boxes: BadBoxes = "error",
        bad_photos: BadPhotos = "error",
    ) -> None:
        described = description_of(Path(path))
        names = checked_class_names(class_names or _names(Path(path), described), add_background=True)
        photos = _photos(Path(path), described, image_set)
        labels = {photo: _labels_of(photo) for photo in photos}
        self.without_labels = sum(file is None for file in labels.values())
        if self.without_labels == len(photos):
            raise MissingFileError(f"no photo has its file of labels: {photos[0]} has no {photos[0].stem}.txt")
        rule, rows = BoxRule(bad_boxes, bad_photos), {}
        for photo, file in labels.items():
            try:
                rows[photo] = _rows(file, len(names) - 1, "kpt_shape" in described) if file else []
            except DataError as error:
                rule.photo(str(error))
        rule.raise_problems(f"{path} cannot be used")
        super().__init__(
            list(rows),
            [_in_pixels([box for _, box in found], photo) for photo, found in rows.items()],
            [[number for number, _ in found] for found in rows.values()],
            class_names=names,
            bad_boxes=bad_boxes,
            bad_photos=bad_photos,
            boxes_on="shown",
        )
        self.left_out += tuple(rule.left_out)


def _rows(file: Path, num_classes: int, key_points: bool) -> list[tuple[int, list[float]]]:
    """Return the class's number, from 1, and the box of each line, in shares: xyxy."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    rows, problems = [], []
    for place, words in ((place, line.split()) for place, line in enumerate(lines, 1) if line.strip()):
        numbers = [float_of(word) for word in words]
        box = _box(numbers[1:5] if key_points else numbers[1:])
        if box is None or max(map(abs, box)) > 2:
            problems.append(f"{file}, line {place}: no class and box in shares of the photo: {words!r:.60}")
        elif not numbers[0].is_integer() or not 0 <= numbers[0] < num_classes:
            problems.append(f"{file}, line {place}: class {words[0]:.20} is not one of 0 to {num_classes - 1}")
        else:
            rows.append((int(numbers[0]) + 1, box))
    if problems:
        raise DataError("; ".join(problems[:3]))
    return rows


def _box(numbers: list[float]) -> list[float] | None:
    """Return xyxy of a box's center and size, or of a polygon; ``None`` for anything else."""
    if not all(map(math.isfinite, numbers)):
        return None
    if len(numbers) == 4:
        x, y, width, height = numbers
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    across, down = numbers[::2], numbers[1::2]
    return [min(across), min(down), max(across), max(down)]


def _in_pixels(boxes: list[list[float]], photo: Path) -> list[list[float]]:
    try:
        height, width = photo_size(photo, upright=True)
    except DataError:  # reported with the other photos
        return [[0.0, 0.0, 1.0, 1.0]] * len(boxes)
    return [[side * length for side, length in zip(box, [width, height] * 2, strict=True)] for box in boxes]


def _labels_of(photo: Path) -> Path | None:
    """Return the labels of a photo, as YOLO finds them: ``labels`` for the last ``images``, or beside it."""
    beside = photo.with_suffix(".txt")
    parallel = re.sub(r"(.*[/\\])images(?=[/\\])", r"\1labels", str(beside))
    return next((file for file in (Path(parallel), beside) if file.is_file()), None)


# What there is: the files of an image set, and the names of the classes.


def description_of(path: Path) -> dict[str, Any]:
    """Return what ``data.yaml`` says, from its path or its folder, with its own path; empty where there is none."""
    files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
    for file in files:
        if not file.is_file():
            raise MissingFileError(f"no YOLO data at {path}")
        found = read_yaml(file)
        if "names" in found:
            return {**found, "file": file}
    return {}


def _names(path: Path, described: dict[str, Any]) -> list[str]:
    names = described.get("names")
    if isinstance(names, dict):
        names = [names.get(str(number), "") for number in range(len(names))]
    for file in ("classes.txt", "obj.names", "labels/classes.txt") if not described else ():
        if (path / file).is_file():
            lines = (path / file).read_text(encoding="utf-8-sig").splitlines()
            names = [line.strip() for line in lines if line.strip()]
    if not isinstance(names, list) or not all(names):
        raise DataError(f"{path} does not name its classes 0, 1 and so on; give class_names=[...]")
    return names


def _photos(path: Path, described: dict[str, Any], image_set: str) -> list[Path]:
    """Return the photos of an image set, sorted."""
    if described:
        places, base, home = _places(described, image_set)
        photos = {photo for place in places for photo in _at(place, base, home)}
    else:
        photos = {path / file for file in by_set(PhotoFiles(path).paths).get(image_set, {})}
    if not photos:
        raise MissingFileError(f"no photo in image set {image_set!r} of {path}")
    return sorted(photos)


def _places(described: dict[str, Any], image_set: str) -> tuple[list[str], Path, Path]:
    """Return the folders and lists of an image set, and the folders from which they may be meant."""
    places, home = described.get(image_set, []), described["file"].parent
    return [places] if isinstance(places, str) else places, home / str(described.get("path") or "."), home


def image_sets_of(path: Path) -> list[str]:
    """Return the image sets that ``data.yaml`` names and that are there; ``"train"`` even if it is not."""
    described = description_of(path)
    sets = {name: _places(described, name) for name in ("train", "val", "test") if name in described}
    there = {name for name, (places, *homes) in sets.items() if any(_found(place, *homes) for place in places)}
    return [name for name in sets if name in there or name == "train"]


def _at(place: str, base: Path, home: Path) -> Iterator[Path]:
    """Yield the photos of a folder, or of a list of them."""
    found = _found(place, base, home)
    if found is None:
        raise MissingFileError(f"no folder or list {place} at {base} or {home}")
    if found.is_dir():
        yield from (found / file for file in files_below(found) if is_photo(file))
        return
    files = PhotoFiles(base if base.is_dir() else home)
    for line in filter(None, map(str.strip, found.read_text(encoding="utf-8-sig").splitlines())):
        try:
            yield files.find(line)
        except DataError:  # reported with the others
            yield files.folder / line


def _found(place: str, base: Path, home: Path) -> Path | None:
    """Return where a place is; Roboflow leads one folder too high."""
    below = re.sub(r"^(\.\./)+", "", place)
    return next((path for path in (base / place, home / place, home / below) if path.exists()), None)


# The part of YAML that such files are written in: keys at the margin with a text, a list or a table of texts.

_KEYS = ("path", "train", "val", "test", "names", "kpt_shape")
_KEY = re.compile(r"(?m)^(\w+)[ \t]*:(.*(?:\n(?:[ \t\-\]}].*)?)*)")
_ITEM = r"""\s*((?:[^,'"\s:]+\s*:\s)?\s*(?:'(?:[^']|'')*'|"(?:\\.|[^"\\])*"|[^,'"\s][^,]*))\s*(?:,\s*|$)"""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys that YOLO reads, with texts, lists of texts and tables of texts; anything else is refused."""
    try:
        text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    pairs = {key: value.strip() for key, value in _KEY.findall(text) if key in _KEYS}
    try:
        return {key: _value(value) for key, value in pairs.items() if value}
    except ValueError as error:
        plain = "write a text, a list [a, b], or a line '- a' or '0: a' for each"
        raise DataError(f"{path} has YAML that is not read here, {error}; {plain}") from error


def _value(text: str) -> Any:
    if re.fullmatch(r"(?s)\[.*\]|\{.*\}", text):
        inner = text[1:-1].strip()
        if not re.fullmatch(f"(?:{_ITEM})*", inner):
            raise ValueError(repr(text[:40]))
        items = [f"- {item}" if text[0] == "[" else item for item in re.findall(_ITEM, inner)]
    else:
        items = [line.strip() for line in text.split("\n") if line.strip()]
    if all(item.startswith("- ") for item in items):
        return [_text(item[2:].strip()) for item in items]
    if all(tables := [re.fullmatch(r"""(['"]?)([^'":]+)\1\s*:\s+(.+)""", item) for item in items]):
        return {found[2]: _text(found[3]) for found in tables if found}
    return _text(text)


def _text(text: str) -> str:
    if re.fullmatch(r"'(?:[^']|'')*'", text):
        return text[1:-1].replace("''", "'")
    if text[:1] == '"':
        return str(json.loads(text))
    if "\n" in text or ": " in text or text[:1] in tuple("'[]{}&*!|>%@`,?-"):
        raise ValueError(repr(text[:40]))
    return text
