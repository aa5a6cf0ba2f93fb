"""Data sets in COCO's format: a folder of images, and one JSON file of their objects."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.annotated import AnnotatedImage, Presence, presence_of
from transferkit.datasets._objects import (
    PLAIN_TEXT,
    BadBoxes,
    BadPhotos,
    Box,
    BoxesOn,
    BoxRule,
    form_of,
    number_of,
    repeated,
    require_frame,
)
from transferkit.datasets._photo import fingerprint, photo_size, read_photo, stored_size, turn_boxes
from transferkit.datasets.voc_files import PhotoFiles, float_of
from transferkit.errors import DataError, MissingFileError, raise_problems
from transferkit.files import leaves_its_folder
from transferkit.progress import Progress, track


class CocoDataset(Dataset[AnnotatedImage]):
    """Images and objects of a COCO file, ``instances_*.json``, or an export in its form.

    Categories become classes 1..K-1 in the order of their ids, but for one that is only the group of the others, as
    Roboflow writes it. Numbers may be written as text, sizes may be missing. Crowds (``iscrowd``) count as difficult.
    Photos are shown upright, and boxes turn with those on which they lie as they are stored. The photos' headers are
    read when the data set is made, so that all that is wrong shows at once.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are in, or that holds them; by default the file's own, or the one that
            this is in where it is called ``annotations``. A photo that is not where its name says is looked for by
            the end of its path.
        bad_boxes: What becomes of boxes that reach out of their photo by more than a pixel or are empty, and of the
            objects in photos that are not of the size that is recorded: ``"error"``, ``"cut"`` at the border (what
            has no part inside is left out), ``"skip"``, or ``"keep"``. A box that is not four numbers, or of negative
            size, is never kept, nor is an object whose ``iscrowd`` is not 0 or 1.
        boxes_on: Whether boxes refer to pixels as they are ``"stored"``, or as they are ``"shown"`` when the photo is
            turned the way its EXIF orientation asks; ``"recorded"`` takes the one whose size is recorded, the stored
            one where both have it.
        bad_photos: What becomes of photos that are missing or cannot be read: ``"error"`` or ``"skip"``.
        progress: Counts the photos as their headers are read.

    Attributes:
        ids: (N,) ids of the images.
        class_names: (K,) names, ``"background"`` first.
        bad_box_counts: How many boxes were ``cut``, ``skipped`` and ``kept``, and how many ``sizes`` were wrong.
        left_out: What is wrong with each photo that was left out.

    Raises:
        MissingFileError: No such file or folder.
        DataError: The file is not COCO's format, contradicts itself, says one thing twice, or names images that are
            not there or not in the folder; lists all.
    """

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str | None = None,
        *,
        bad_boxes: BadBoxes = "error",
        bad_photos: BadPhotos = "error",
        boxes_on: BoxesOn = "recorded",
        progress: Progress = False,
    ) -> None:
        require_frame(boxes_on)
        beside = Path(annotations).parent
        named = beside.name.lower() in ("annotations", "labels")
        self._folder = Path(images) if images is not None else beside.parent if named else beside
        if not self._folder.is_dir():
            raise MissingFileError(f"no folder of images at {images}")
        content = _read(Path(annotations))
        records, categories = content["images"], _without_group(content["categories"], content["annotations"])
        problems = [*_keys(records, "image", "id"), *_keys(categories, "category", "id", "name")]
        raise_problems(problems, f"{annotations} cannot be used")
        categories = sorted(categories, key=lambda category: _whole(category["id"]))
        numbers = {_key(category["id"]): number for number, category in enumerate(categories, start=1)}
        self.class_names = ("background", *(str(category["name"]) for category in categories))
        things: dict[str, list[dict[str, Any]]] = {_key(record["id"]): [] for record in records}
        problems = _gather(content["annotations"], things, numbers)
        rule = BoxRule(bad_boxes, bad_photos)
        paths = _photos(PhotoFiles(self._folder), records, Path(annotations), rule)
        self._objects, self._paths, ids = [], [], []
        for place, path in track(paths.items(), progress, description="read sizes", unit="photo"):
            frame = _frame(records[place], path, boxes_on, rule)
            self._objects.append(_objects(things[_key(records[place]["id"])], frame, numbers, rule))
            self._paths.append(path)
            ids.append(str(records[place]["id"]))
        rule.raise_problems(f"{annotations} cannot be used", problems)
        self.ids, self.bad_box_counts, self.left_out = tuple(ids), rule.counts, tuple(rule.left_out)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Decode one image.

        Raises:
            DataError: The photo is damaged; names it.
        """
        image = read_photo(self._paths[index], upright=True)
        return AnnotatedImage(image, *self.objects(index), id=self.ids[index])

    def __repr__(self) -> str:
        return f"CocoDataset({len(self)} images, {len(self.class_names) - 1} classes, {str(self._folder)!r})"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` without decoding."""
        return photo_size(self._paths[index], upright=True)

    def fingerprint(self, index: int) -> str:
        """Return a digest of an image's file and its annotation: another one if either changes."""
        return fingerprint(self._paths[index], *self._objects[index])

    def photo_file(self, index: int) -> tuple[Path, str]:
        """Return an image's file, and how its pixels are read from that."""
        return self._paths[index], "upright=True"

    def objects(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an image's boxes, classes, difficult (crowds) and truncated, without decoding."""
        boxes, classes, crowds = self._objects[index]
        return (
            torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            torch.tensor(classes, dtype=torch.int64),
            torch.tensor(crowds, dtype=torch.bool),
            torch.zeros(len(classes), dtype=torch.bool),
        )

    def presence(self) -> Presence:
        """Return which classes each image holds, without decoding."""
        return presence_of(((classes, crowds) for _, classes, crowds in self._objects), len(self.class_names))


Objects = tuple[list[Box], list[int], list[bool]]


class _Frame(NamedTuple):
    """Where an image's boxes lie: the size that bounds them, how to turn them, and whether they are used."""

    size: tuple[int, int]
    orientation: int
    used: bool


def _frame(record: dict[str, Any], path: Path, boxes_on: BoxesOn, rule: BoxRule) -> _Frame:
    """Return the frame of an image's boxes; an endless one for a photo that cannot be read, as its reader is told."""
    try:
        stored, orientation = stored_size(path)
    except DataError:  # an endless one
        return _Frame((1 << 40, 1 << 40), 1, True)
    turned = stored[::-1] if orientation >= 5 else stored
    recorded = tuple(_whole(record.get(side)) for side in ("height", "width"))
    said = recorded if recorded not in ((0, 0), (None, None)) else None
    used = said in (None, stored, turned) or rule.wrong_size(
        f"{path} is recorded as {recorded[1]!r:.20} x {recorded[0]!r:.20} and is {stored[1]} x {stored[0]}"
    )
    if boxes_on == "recorded" and orientation > 1 and said not in (stored, turned) and used:
        rule.problems.append(f"{path} is to be turned, and no size says how its boxes lie; say boxes_on")
    if boxes_on == "shown" or (boxes_on == "recorded" and said == turned != stored):
        return _Frame(turned, 1, used)
    return _Frame(stored, orientation, used)


def _objects(things: list[dict[str, Any]], frame: _Frame, numbers: dict[str, int], rule: BoxRule) -> Objects:
    """Return the boxes of an image on its photo as it is shown, with their classes and whether they are crowds."""
    if not frame.used:
        rule.counts["skipped"] += len(things)
        return [], [], []
    boxes, classes, crowds = [], [], []
    for thing in things:
        name, bbox = f"object {thing.get('id')!r:.20}", thing["bbox"]
        sides = tuple(map(_number, bbox)) if isinstance(bbox, list) else ()
        if len(sides) == 4:
            sides = (sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3])
        box = rule(sides, frame.size, f"{name}: bbox {bbox!r:.80}")
        crowd = None if box is None else rule.flag(_whole(thing.get("iscrowd", 0)), f"{name}: iscrowd")
        if box is not None and crowd is not None:
            boxes.append(box)
            classes.append(numbers[_key(thing["category_id"])])
            crowds.append(crowd)
    if frame.orientation > 1 and boxes:
        turned = turn_boxes(torch.tensor(boxes, dtype=torch.float64), frame.size, frame.orientation)
        boxes = [(left, top, right, bottom) for left, top, right, bottom in turned.tolist()]
    return boxes, classes, crowds


def _gather(
    annotations: list[dict[str, Any]], things: dict[str, list[dict[str, Any]]], numbers: dict[str, int]
) -> list[str]:
    """Put each object to its image in ``things``; return what is wrong with others."""
    problems = []
    for thing in annotations:
        for part, known in (("image", things), ("category", numbers)):
            if _key(thing[f"{part}_id"]) not in known:
                of = "on image" if part == "image" else "of category"
                problems.append(
                    f"object {thing.get('id')!r:.20} is {of} {thing[f'{part}_id']!r:.40}, which is not listed"
                )
                break
        else:
            things[_key(thing["image_id"])].append(thing)
    return problems


def _photos(
    files: PhotoFiles, records: list[dict[str, Any]], annotations: Path, rule: BoxRule
) -> dict[int, Path]:
    """Return the photo of each record, by its place, but for those that are not there, or not in the folder."""
    folders = {part for path in files.paths for part in path.split("/")[:-1]}
    image_set = max((name for name in folders if name in annotations.stem), key=len, default="")
    paths: dict[int, Path] = {}
    names: dict[Path, str] = {}  # what a file was called first
    for place, record in enumerate(records):
        name = record["file_name"]
        if not isinstance(name, str) or leaves_its_folder(name):
            rule.photo(f"image {name!r:.80} leads out of the folder of images; give names relative to it")
            continue
        try:
            path = files.find(name, image_set)
            stored_size(path)
            if names.setdefault(path, same := form_of(name.replace("\\", "/"))) != same:
                raise DataError(f"images {names[path]} and {name} are one file, {path}")
            paths[place] = path
        except DataError as error:
            rule.photo(str(error))
    return paths


def _keys(rows: list[dict[str, Any]], part: str, *columns: str) -> list[str]:
    """Return what is wrong with ids and names that must differ."""
    problems = []
    for column in columns:
        values = [row[column] for row in rows]
        kinds = {type(value) for value in values}
        odd = [
            value
            for value in values
            if not _key(value) or (column == "name" and form_of(str(value)) in _RESERVED)
        ]
        usable = "text or a whole number" + (
            ", and not 'background', which is class 0" if column == "name" else ""
        )
        problems += [f"{part} {column} {value!r:.40} must be {usable}" for value in odd]
        if column == "id" and str in kinds and len(kinds) > 1:
            problems.append(f"{part} ids are numbers and text: {values[0]!r:.40} and others")
        twice = repeated(form_of(str(_whole(value))) for value in values)
        problems += [f"{part} {column} {value!r:.40} is given more than once" for value in twice]
    return problems


_RESERVED = ("", "background")


def _key(value: Any) -> str:
    """Return an id as it is looked up, the same for 1 and 1.0 and another for "1"; "" for what is none."""
    value = _whole(value)
    number = isinstance(value, int) and not isinstance(value, bool)
    return repr(value) if number or (isinstance(value, str) and PLAIN_TEXT.fullmatch(value)) else ""


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what a COCO file holds, its outline checked."""
    if not path.is_file():
        raise MissingFileError(f"no COCO file at {path}")
    try:
        content: Any = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    needed = {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "category_id", "bbox"),
    }
    problems = []
    for part, keys in needed.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            problems.append(f"it has no list of {part}")
            continue
        lacking = sum(not isinstance(row, dict) or not all(key in row for key in keys) for row in rows)
        if lacking:
            problems.append(f"{lacking} of its {len(rows)} {part} lack one of {', '.join(keys)}")
    raise_problems(problems, f"{path} is not a COCO file")
    parts: dict[str, list[dict[str, Any]]] = content
    return parts


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{', '.join(repeated(key for key, _ in pairs))!r:.40} is said twice of one thing")
    return found


def _whole(value: Any) -> Any:
    """Return a whole number that is written as 1.0 or "1" as one; anything else as it is."""
    written = isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", value)
    return int(value) if written or (isinstance(value, float) and value.is_integer()) else value


def _number(value: Any) -> float:
    return float_of(value) if isinstance(value, str) else number_of(value)


def _without_group(categories: list[dict[str, Any]], things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return categories without one that is of no group, that has no object, and that others name as their group."""
    groups = {str(each.get("supercategory")) for each in categories} - {"none"}
    used = {_key(thing["category_id"]) for thing in things}
    empty = [each for each in categories if str(each["name"]) in groups and _key(each["id"]) not in used]
    return [each for each in categories if each not in empty or each.get("supercategory") != "none"]
