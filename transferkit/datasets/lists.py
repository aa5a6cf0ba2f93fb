"""Data sets from plain lists, and from data sets as torchvision has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.annotated import AnnotatedImage, Presence, presence_of
from transferkit.boxes import as_boxes
from transferkit.datasets._photo import AnyImage, FloatRange, as_pixels, size_of, stored_size, turn_boxes
from transferkit.errors import DataError, TransferKitError, raise_problems, require


class ImageListDataset(Dataset[AnnotatedImage]):
    """Images and their objects, each given as a list of N.

    Files are shown upright, as their EXIF orientation asks, and their boxes turn with them.

    Args:
        images: Files, PIL images, arrays (H, W) or (H, W, C), or tensors (C, H, W).
        boxes: Of each image, (n, 4) xyxy, pixels, 0-based, half-open; ``None`` for no objects at all.
        classes: Of each image, n whole numbers from 1.
        difficult: Of each image, n flags; ``None`` for none.
        truncated: Of each image, n flags; ``None`` for none.
        class_names: (K,) names, ``"background"`` first; by default ``class 1`` and so on up to the largest.
        ids: N names; by default a file's name without its folder and ending, or the image's place.
        boxes_on: Whether boxes refer to a file's pixels as they are ``"stored"`` or as they are ``"shown"``.
        float_range: The values that floating images span, ``(0, 1)`` or ``(0, 255)``; needed where there are such.

    Attributes:
        ids: (N,) names of the images.
        class_names: (K,) names of the classes.

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
        difficult: Sequence[Any] | None = None,
        truncated: Sequence[Any] | None = None,
        class_names: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        boxes_on: Literal["stored", "shown"] = "stored",
        float_range: FloatRange | None = None,
    ) -> None:
        require(len(images) > 0, "images", "at least one image", images)
        require(boxes_on in ("stored", "shown"), "boxes_on", "'stored' or 'shown'", boxes_on)
        require((boxes is None) == (classes is None), "classes", "given if and only if boxes are", classes)
        columns = {
            "boxes": boxes,
            "classes": classes,
            "difficult": difficult,
            "truncated": truncated,
            "ids": ids,
        }
        for name, column in columns.items():
            fits = column is None or len(column) == len(images)
            require(fits, name, f"a list of {len(images)}, one for each image", column)
        self._images = list(images)
        self._boxes_on, self._float_range = boxes_on, float_range
        self.ids = tuple(map(_name, range(len(images)), images)) if ids is None else tuple(ids)
        self._objects = self._checked(boxes, classes, difficult, truncated)
        most = max((int(objects[1].max()) for objects in self._objects if len(objects[1])), default=0)
        names = class_names or ("background", *(f"class {number}" for number in range(1, most + 1)))
        require(len(names) > most, "class_names", f"more than {most} names, background first", class_names)
        self.class_names = tuple(names)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Decode one image.

        Raises:
            DataError: An image that cannot be read; names the file.
        """
        image = as_pixels(self._images[index], self._float_range)
        return AnnotatedImage(image, *self.objects(index), id=self.ids[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images, {len(self.class_names) - 1} classes)"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` without decoding."""
        return size_of(self._images[index])

    def photo_file(self, index: int) -> tuple[Path, str] | None:
        """Return an image's file, and how its pixels are read from that; ``None`` for one in memory."""
        image, reading = self._images[index], f"upright=True float_range={self._float_range}"
        return (Path(image), reading) if isinstance(image, (str, Path)) else None

    def objects(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an image's boxes, classes, difficult and truncated, without decoding."""
        boxes, classes, difficult, truncated = self._objects[index]
        image = self._images[index]
        if isinstance(image, (str, Path)) and self._boxes_on == "stored" and len(boxes):
            boxes = turn_boxes(boxes, *stored_size(Path(image)))
        return boxes, classes, difficult, truncated

    def presence(self) -> Presence:
        """Return which classes each image holds, without decoding."""
        rows = [(classes.tolist(), difficult.tolist()) for _, classes, difficult, _ in self._objects]
        return presence_of(rows, len(self.class_names))

    def _checked(self, *columns: Sequence[Any] | None) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return the objects of each image as tensors."""
        checked, problems = [], []
        for place, image in enumerate(self._images):
            try:
                checked.append(_objects(*(None if column is None else column[place] for column in columns)))
            except (TransferKitError, TypeError, ValueError) as error:
                problems.append(f"image {place} ({self.ids[place]}): {error}")
            if isinstance(image, (str, Path)) and not Path(image).is_file():
                problems.append(f"image {place}: no file {image}")
        raise_problems(problems, "the lists cannot be used")
        return checked


def _objects(boxes: Any, classes: Any, difficult: Any, truncated: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``boxes`` (n, 4) float64, ``classes`` (n,) int64 and two flags (n,) bool."""
    if boxes is None:
        boxes, classes = [], []
    rows = as_boxes(torch.as_tensor(boxes)).double()
    numbers = torch.as_tensor(classes).reshape(-1).long()
    require(len(numbers) == len(rows), "classes", f"{len(rows)} numbers, one for each box", classes)
    require(bool((numbers > 0).all()), "classes", "1 or more (0 is the background)", classes)
    flags = []
    for name, flag in (("difficult", difficult), ("truncated", truncated)):
        marked = (
            torch.zeros(len(rows), dtype=torch.bool)
            if flag is None
            else torch.as_tensor(flag).reshape(-1).bool()
        )
        require(len(marked) == len(rows), name, f"{len(rows)} flags, one for each box", flag)
        flags.append(marked)
    return rows, numbers, flags[0], flags[1]


def _name(place: int, image: AnyImage) -> str:
    return Path(image).stem if isinstance(image, (str, Path)) else str(place)


# Detection data sets as torchvision has them, ``(image, {"boxes": ..., "labels": ...})``, for the sampler.


class TargetDictDataset(Dataset[AnnotatedImage]):
    """A view of a data set whose items are ``(image, target)``.

    Images may be PIL images, arrays or tensors, uint8 or floating. Targets have ``boxes`` (n, 4) xyxy and
    ``labels`` (n,) from 1. They may have ``difficult`` or ``iscrowd``, which both count as difficult, ``truncated``,
    and ``image_id``.

    Args:
        dataset: ``len`` and items as above.
        class_names: (K,) names, ``"background"`` first; the data set's own by default, if it has any.
        float_range: The values that floating images span: ``(0, 1)`` as torchvision's ``ToTensor`` makes them, or
            ``(0, 255)``; needed where there are such.

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
    ) -> None:
        self._dataset, self._float_range = dataset, float_range
        names = class_names or getattr(dataset, "class_names", None)
        if names is not None:
            self.class_names = tuple(names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Return one image with its objects.

        Raises:
            DataError: The item is not ``(image, target)``, or its parts contradict each other.
        """
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
        boxes = as_boxes(torch.as_tensor(target["boxes"])).double().cpu()
        return AnnotatedImage(
            image=as_pixels(image, self._float_range),
            boxes=boxes,
            classes=_column(target["labels"], len(boxes), "labels", index).long(),
            difficult=_flags(target, ("difficult", "iscrowd"), len(boxes), index),
            truncated=_flags(target, ("truncated",), len(boxes), index),
            id=str(_plain(target.get("image_id", index))),
        )


def _column(values: Any, rows: int, name: str, index: int) -> Tensor:
    column = torch.as_tensor(values).reshape(-1).cpu()
    if len(column) != rows:
        raise DataError(f"item {index} has {rows} boxes, but {len(column)} {name}")
    return column


def _flags(target: Mapping[str, Any], names: tuple[str, ...], rows: int, index: int) -> Tensor:
    flags = torch.zeros(rows, dtype=torch.bool)
    for name in names:
        if name in target:
            flags |= _column(target[name], rows, name, index).bool()
    return flags


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
