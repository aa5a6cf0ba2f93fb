"""Data sets from plain lists, and from data sets as torchvision has them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.annotated import AnnotatedImage, Presence, presence_of, truth, whole_numbers
from transferkit.datasets._objects import (
    BadBoxes,
    BadPhotos,
    BoxRule,
    checked_class_names,
    repeated,
    require_different,
    require_frame,
)
from transferkit.datasets._photo import AnyImage, FloatRange, as_pixels, size_of, stored_size, turn_boxes
from transferkit.errors import ArgumentError, DataError, require
from transferkit.files import is_file
from transferkit.progress import Progress, track


class ImageListDataset(Dataset[AnnotatedImage]):
    """Images and their objects, each given as a list of N.

    Files are shown upright, as their EXIF orientation asks, and their boxes turn with them. The headers of files with
    boxes are read when the data set is made.

    Args:
        images: Files, PIL images, arrays (H, W) or (H, W, C), or tensors (C, H, W); arrays and tensors that are no
            pictures of RGB bytes keep their channels, type and values.
        boxes: Of each image, (n, 4) xyxy, pixels, 0-based, half-open; ``None`` for no objects at all.
        classes: Of each image, n whole numbers from 1.
        image_labels: Of each image, the classes that it shows where it is not known where they are, whole numbers
            from 1, none for an image without any; ``None`` for one whose objects are all in ``boxes``.
        difficult: Of each image, n flags; ``None`` for none.
        truncated: Of each image, n flags; ``None`` for none.
        class_names: (K,) names, ``"background"`` first; by default ``class 1`` and so on up to the largest.
        ids: N names, all different; by default a file's name without its folder and ending, or the image's place.
            Where two files would have one name, all have their folders' names too, and their endings if need be.
        bad_boxes: What becomes of boxes that reach out of their image by more than a pixel or are empty: ``"error"``,
            ``"cut"`` at the border (what has no part inside is left out), ``"skip"``, or ``"keep"``. A box that is
            not four numbers, or ends before it starts, is never kept.
        bad_photos: What becomes of files whose header cannot be read: ``"error"``, or ``"skip"``, which leaves out
            missing ones, too; by default whoever asks for their pixels is told.
        boxes_on: Whether boxes refer to pixels as they are ``"stored"``, or as they are ``"shown"`` when the photo is
            turned the way its EXIF orientation asks. PIL images are turned only if ``"shown"``.
        float_range: The values that floating images span, ``(0, 1)`` or ``(0, 255)``; needed where there are such.

    Attributes:
        ids: (N,) names of the images.
        class_names: (K,) names of the classes.
        bad_box_counts: How many boxes were ``cut``, ``skipped`` and ``kept``.
        left_out: What is wrong with each photo that was left out.

    Raises:
        ArgumentError: Lists of different lengths, or none.
        DataError: Objects that are malformed, or files that are missing; lists all.

    Example:
        >>> images = [torch.zeros(3, 40, 60, dtype=torch.uint8)]
        >>> names = ["background", "dog"]
        >>> data = ImageListDataset(images, boxes=[[[5, 5, 20, 30]]], classes=[[1]], class_names=names)
        >>> data[0].boxes
        tensor([[ 5.,  5., 20., 30.]], dtype=torch.float64)
    """

    def __init__(
        self,
        images: Sequence[AnyImage],
        boxes: Sequence[Any] | None = None,
        classes: Sequence[Any] | None = None,
        *,
        image_labels: Sequence[Any] | None = None,
        difficult: Sequence[Any] | None = None,
        truncated: Sequence[Any] | None = None,
        class_names: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        bad_boxes: BadBoxes = "error",
        bad_photos: BadPhotos | None = None,
        boxes_on: Literal["stored", "shown"] = "stored",
        float_range: FloatRange | None = None,
    ) -> None:
        require(len(images) > 0, "images", "at least one image", images)
        require_frame(boxes_on, ("stored", "shown"))
        require((boxes is None) == (classes is None), "classes", "given if and only if boxes are", classes)
        columns = {
            "boxes": boxes,
            "classes": classes,
            "image_labels": image_labels,
            "difficult": difficult,
            "truncated": truncated,
            "ids": ids,
        }
        for name, column in columns.items():
            fits = column is None or len(column) == len(images)
            require(fits, name, f"a list of {len(images)}, one for each image", column)
        self._images = list(images)
        self._boxes_on, self._float_range = boxes_on, float_range
        self.ids = _names(images) if ids is None else tuple(ids)
        require_different("ids", self.ids)
        rule = BoxRule(bad_boxes, bad_photos)
        self._objects, self._labels = self._checked(rule, image_labels, boxes, classes, difficult, truncated)
        self.bad_box_counts, self.left_out = rule.counts, tuple(rule.left_out)
        most = max((number for row in self._classes() for number in row), default=0)
        names = class_names or ("background", *(f"class {number}" for number in range(1, most + 1)))
        require(len(names) > most, "class_names", f"more than {most} names, background first", class_names)
        self.class_names = checked_class_names(names, add_background=False)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Decode one image.

        Raises:
            DataError: An image that cannot be read; names the file.
        """
        image = as_pixels(self._images[index], self._float_range, upright=self._boxes_on == "shown")
        return AnnotatedImage(image, *self.objects(index), id=self.ids[index], image_labels=self._labels[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.class_names) - 1} classes)"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` without decoding."""
        return size_of(self._images[index], upright=self._boxes_on == "shown")

    def photo_file(self, index: int) -> tuple[Path, str] | None:
        """Return an image's file, and how its pixels are read from that; ``None`` for one in memory."""
        image = self._images[index]
        reading = f"upright={self._boxes_on == 'shown'} float_range={self._float_range}"
        return (Path(image), reading) if isinstance(image, (str, Path)) else None

    def objects(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an image's boxes, classes, difficult and truncated, without decoding."""
        boxes, classes, difficult, truncated = self._objects[index]
        return boxes, classes, difficult, truncated

    def presence(self) -> Presence:
        """Return which classes each image holds, without decoding."""
        flags = [objects[2].tolist() for objects in self._objects]
        rows = [(of, hard or [False] * len(of)) for of, hard in zip(self._classes(), flags, strict=True)]
        boxed = [labels is None for labels in self._labels]
        return presence_of(rows, len(self.class_names), None if all(boxed) else boxed)

    def _classes(self) -> list[list[int]]:
        """Return the classes of each image, of its boxes or of the whole."""
        pairs = zip(self._objects, self._labels, strict=True)
        return [(objects[1] if labels is None else labels).tolist() for objects, labels in pairs]

    def _checked(
        self, rule: BoxRule, labels: Sequence[Any] | None, *columns: Sequence[Any] | None
    ) -> tuple[list[Objects], list[Tensor | None]]:
        """Return the objects and the labels of each image as tensors, and forget images that are left out."""
        checked, known, problems, used = [], [], [], []
        for place, image in enumerate(self._images):
            name = f"image {place} ({self.ids[place]})"
            if isinstance(image, (str, Path)) and (fault := _fault(image, rule.bad_photos)):
                rule.photo(f"image {place}: {fault}")
                if rule.bad_photos:
                    continue
            try:
                values = [None if column is None else column[place] for column in columns]
                objects = _objects(image, self._boxes_on, rule, name, *values)
                known.append(_labels(None if labels is None else labels[place], values[0]))
                checked.append(objects)
                used.append(place)
            except Exception as error:  # whatever these values are, torch or Pillow may stumble over them
                problems.append(f"{name}: {error}")
        rule.raise_problems("the lists cannot be used", problems)
        require(bool(used), "images", "at least one image that can be read", rule.left_out[:3])
        self._images = [self._images[place] for place in used]
        self.ids = tuple(self.ids[place] for place in used)
        return checked, known


Objects = tuple[Tensor, Tensor, Tensor, Tensor]


def _objects(
    image: AnyImage, boxes_on: str, rule: BoxRule, name: str, boxes: Any, classes: Any, *flags: Any
) -> Objects:
    """Return ``boxes`` (n, 4) float64 on the image as it is shown, ``classes`` (n,) int64 and two flags (n,) bool."""
    if boxes is None:
        boxes, classes = [], []
    rows = boxes.tolist() if hasattr(boxes, "tolist") else list(boxes)
    numbers = whole_numbers("classes", classes).reshape(-1)
    require(len(numbers) == len(rows), "classes", f"{len(rows)} numbers, one for each box", classes)
    require(bool((numbers > 0).all()), "classes", "1 or more (0 is the background)", classes)
    columns = [numbers]
    for argument, flag in zip(("difficult", "truncated"), flags, strict=True):
        marked = truth(argument, [False] * len(rows) if flag is None else flag).reshape(-1)
        require(len(marked) == len(rows), argument, f"{len(rows)} flags, one for each box", flag)
        columns.append(marked)
    size, orientation = _frame(image, boxes_on) if rows else ((0, 0), 1)
    fitting = [rule(_sides(row), size, f"{name}: box {row!r:.80}") for row in rows]
    used = torch.tensor([box is not None for box in fitting], dtype=torch.bool)
    kept = torch.tensor([box for box in fitting if box is not None], dtype=torch.float64).reshape(-1, 4)
    columns = [column.cpu()[used] for column in columns]
    return turn_boxes(kept, size, orientation), columns[0], columns[1], columns[2]


def _labels(labels: Any, boxes: Any) -> Tensor | None:
    """Return the classes of a whole image, each once, (n,) int64; ``None`` for one whose objects are in boxes."""
    if labels is None:
        return None
    require(boxes is None or len(boxes) == 0, "image_labels", "None for an image with boxes", labels)
    numbers = whole_numbers("image_labels", labels if len(labels) else torch.zeros(0).long()).reshape(-1)
    require(bool((numbers > 0).all()), "image_labels", "1 or more (0 is the background)", labels)
    return torch.tensor(sorted(set(numbers.tolist())), dtype=torch.int64)


def _fault(path: str | Path, bad_photos: BadPhotos | None) -> str:
    """Return what is wrong with a photo's file; of its content only where that is asked."""
    if not is_file(path):
        return f"no file {path}"
    try:
        if bad_photos:
            stored_size(Path(path))
    except DataError as error:
        return str(error)
    return ""


def _sides(row: Any) -> Sequence[Any]:
    row = row.tolist() if hasattr(row, "tolist") else row
    return row if isinstance(row, (list, tuple)) else ()


def _frame(image: AnyImage, boxes_on: str) -> tuple[tuple[int, int], int]:
    """Return the size that bounds an image's boxes, and how they are to be turned with it; endless if unreadable."""
    if isinstance(image, (str, Path)):
        try:
            size, orientation = stored_size(Path(image))
        except DataError:  # whoever asks for its pixels is told
            return (1 << 40, 1 << 40), 1
        if boxes_on == "stored":
            return size, orientation
    return size_of(image, upright=boxes_on == "shown"), 1


def _names(images: Sequence[AnyImage]) -> tuple[str, ...]:
    """Return names that all differ."""
    files = {place: Path(image) for place, image in enumerate(images) if isinstance(image, (str, Path))}
    names: tuple[str, ...] = ()
    for way in _ways(list(files.values())):
        of_files = dict(zip(files, way, strict=True))
        names = tuple(of_files.get(place, str(place)) for place in range(len(images)))
        if not repeated(names):
            break
    return names


def _ways(paths: list[Path]) -> Iterator[list[str]]:
    """Yield files' own names, then with folders, then with endings, then with places."""
    yield [path.stem for path in paths]
    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100
    folder = os.path.commonpath([path.parent for path in whole])
    below = [path.relative_to(folder) for path in whole]
    yield [path.with_suffix("").as_posix() for path in below]
    yield [path.as_posix() for path in below]
    yield [f"{path.as_posix()} {number}" for number, path in enumerate(below)]


# Detection data sets as torchvision has them, ``(image, {"boxes": ..., "labels": ...})``, for the sampler.


class TargetDictDataset(Dataset[AnnotatedImage]):
    """A view of a data set whose items are ``(image, target)``.

    Images may be PIL images, arrays or tensors, uint8 or floating; arrays and tensors that are no pictures of RGB
    bytes keep their channels, type and values. Targets have ``boxes`` (n, 4) xyxy and ``labels`` (n,) from 1. They
    may have ``difficult`` or ``iscrowd``, which both count as difficult, ``truncated``, and ``image_id``.

    Args:
        dataset: ``len`` and items as above.
        class_names: (K,) names, ``"background"`` first; the data set's own by default, if it has any.
        float_range: The values that floating images span: ``(0, 1)`` as torchvision's ``ToTensor`` makes them, or
            ``(0, 255)``; needed where there are such.
        bad_boxes: See :class:`ImageListDataset`; boxes are looked at when their image is asked for, or by
            :meth:`verify`, all of them.
        boxes_on: Whether boxes refer to the pixels of PIL images and files as they are ``"stored"``, or as they are
            ``"shown"`` when turned the way their EXIF orientation asks.

    Example:
        >>> target = {"boxes": torch.tensor([[5, 5, 20, 30]]), "labels": torch.tensor([1])}
        >>> TargetDictDataset([(torch.zeros(3, 40, 60), target)], float_range=(0, 1))[0].classes
        tensor([1])
    """

    def __init__(
        self,
        dataset: Any,
        class_names: Sequence[str] | None = None,
        *,
        float_range: FloatRange | None = None,
        bad_boxes: BadBoxes = "error",
        boxes_on: Literal["stored", "shown"] = "stored",
    ) -> None:
        require_frame(boxes_on, ("stored", "shown"))
        self._dataset, self._float_range = dataset, float_range
        self._bad_boxes, self._boxes_on = BoxRule(bad_boxes).bad_boxes, boxes_on
        self._counts: dict[int, dict[str, int]] = {}
        names = class_names or getattr(dataset, "class_names", None)
        if names is not None:
            self.class_names = checked_class_names(names, add_background=False)

    @property
    def bad_box_counts(self) -> dict[str, int]:
        """How many boxes were ``cut``, ``skipped`` and ``kept`` in the images that were looked at, here."""
        counts = BoxRule(self._bad_boxes).counts
        return {key: sum(one[key] for one in self._counts.values()) for key in counts}

    def verify(self, progress: Progress = False) -> None:
        """Look at every image once.

        Raises:
            DataError: Naming all that is wrong with their targets.
        """
        problems, all_boxes = [], BoxRule(self._bad_boxes)
        for index in track(range(len(self)), progress, description="verify", unit="image"):
            rule = BoxRule(self._bad_boxes)
            try:
                self._item(index, rule)
            except DataError as error:
                problems.append(str(error))
            all_boxes.add(rule)
        all_boxes.raise_problems("the data set cannot be used", problems)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Return one image with its objects.

        Raises:
            DataError: The item is not ``(image, target)``, or its parts contradict each other.
        """
        rule = BoxRule(self._bad_boxes)
        item = self._item(index, rule)
        rule.raise_problems(f"item {index} cannot be used")
        return item

    def _item(self, index: int, rule: BoxRule) -> AnnotatedImage:
        item = self._dataset[index]
        if not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[1], Mapping):
            found = (
                [type(part).__name__ for part in item] if isinstance(item, Sequence) else type(item).__name__
            )
            raise DataError(f"item {index} must be (image, target dict), got {found}")
        image, target = item
        missing = [name for name in ("boxes", "labels") if name not in target]
        if missing:
            raise DataError(
                f"the target of item {index} has no {' and no '.join(missing)}, only {sorted(target)}"
            )
        form = getattr(target["boxes"], "format", None)  # torchvision's BoundingBoxes have one
        if getattr(form, "name", "XYXY") != "XYXY":
            raise DataError(f"the boxes of item {index} must be XYXY, got {form}; convert them in the data set")
        pixels = as_pixels(image, self._float_range, upright=self._boxes_on == "shown")
        columns = self._columns(index, image, target, rule)
        self._counts[index] = rule.counts
        return AnnotatedImage(pixels, *columns, id=str(_plain(target.get("image_id", index))))

    def _columns(self, index: int, image: AnyImage, target: Mapping[str, Any], rule: BoxRule) -> Objects:
        try:
            rows, labels = len(target["boxes"]), whole_numbers("labels", target["labels"]).reshape(-1)
            if len(labels) != rows:
                raise DataError(f"item {index} has {rows} boxes, but {len(labels)} labels")
            flags = [_flags(target, names, rows, index) for names in (("difficult", "iscrowd"), ("truncated",))]
            objects = _objects(image, self._boxes_on, rule, f"item {index}", target["boxes"], labels, *flags)
        except (ArgumentError, TypeError) as error:
            raise DataError(f"item {index}: {error}") from error
        most, names = max(objects[1].tolist(), default=0), getattr(self, "class_names", None)
        if names is not None and most >= len(names):
            raise DataError(
                f"item {index} has label {most}, but there are class_names for 1 to {len(names) - 1}"
            )
        return objects


def _flags(target: Mapping[str, Any], names: tuple[str, ...], rows: int, index: int) -> Tensor:
    flags = torch.zeros(rows, dtype=torch.bool)
    for name in names:
        if name in target:
            column = truth(name, target[name]).reshape(-1).cpu()
            if len(column) != rows:
                raise DataError(f"item {index} has {rows} boxes, but {len(column)} {name}")
            flags |= column
    return flags


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
