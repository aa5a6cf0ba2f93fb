"""Data sets in COCO's format: a folder of images, and one JSON file of their objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.annotated import AnnotatedImage, Presence, presence_of
from transferkit.boxes import clip
from transferkit.datasets._photo import fingerprint, photo_size, read_photo, stored_size, turn_boxes
from transferkit.errors import DataError, MissingFileError, raise_problems


class CocoDataset(Dataset[AnnotatedImage]):
    """Images and objects of a COCO file, ``instances_*.json``.

    Categories become classes 1..K-1 in the order of their ids. Crowds (``iscrowd``) count as difficult. Boxes are cut
    at the image's border. Photos are shown upright; boxes turn with those whose recorded width and height are those
    of the photo as it is stored.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are in.

    Attributes:
        ids: (N,) ids of the images.
        class_names: (K,) names, ``"background"`` first.

    Raises:
        MissingFileError: No such file or folder.
        DataError: The file is not COCO's format, contradicts itself, or names images that are not there; lists all.
    """

    def __init__(self, annotations: Path | str, images: Path | str) -> None:
        self._folder = Path(images)
        if not self._folder.is_dir():
            raise MissingFileError(f"no folder of images at {images}")
        content = _read(Path(annotations))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        numbers = {category["id"]: number for number, category in enumerate(categories, start=1)}
        self.class_names = ("background", *(str(category["name"]) for category in categories))
        self._images: list[dict[str, Any]] = content["images"]
        self.ids = tuple(str(image["id"]) for image in self._images)
        objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in self._images}
        problems = [
            f"no image {image['file_name']}"
            for image in self._images
            if not (self._folder / image["file_name"]).is_file()
        ]
        for thing in content["annotations"]:
            if thing["image_id"] not in objects:
                problems.append(
                    f"object {thing.get('id')} is on image {thing['image_id']}, which is not listed"
                )
            elif thing["category_id"] not in numbers:
                problems.append(
                    f"object {thing.get('id')} is of category {thing['category_id']}, which is not listed"
                )
            elif len(thing["bbox"]) != 4 or min(thing["bbox"][2:]) < 0:
                problems.append(f"object {thing.get('id')} has no [x, y, width, height] but {thing['bbox']}")
            else:
                objects[thing["image_id"]].append(thing)
        raise_problems(problems, f"{annotations} cannot be used")
        self._objects = [
            (
                [thing["bbox"] for thing in objects[image["id"]]],
                [numbers[thing["category_id"]] for thing in objects[image["id"]]],
                [bool(thing.get("iscrowd", 0)) for thing in objects[image["id"]]],
            )
            for image in self._images
        ]

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Decode one image.

        Raises:
            DataError: The photo is damaged, or not of the size that was recorded; names it.
        """
        image = read_photo(self._path(index), upright=True)
        return AnnotatedImage(image, *self.objects(index), id=self.ids[index])

    def __repr__(self) -> str:
        return f"CocoDataset({len(self)} images, {len(self.class_names) - 1} classes, {str(self._folder)!r})"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` without decoding."""
        return photo_size(self._path(index), upright=True)

    def fingerprint(self, index: int) -> str:
        """Return a digest of an image's file and its annotation: another one if either changes."""
        return fingerprint(self._path(index), *self._objects[index])

    def photo_file(self, index: int) -> tuple[Path, str]:
        """Return an image's file, and how its pixels are read from that."""
        return self._path(index), "upright=True"

    def objects(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an image's boxes, classes, difficult (crowds) and truncated, without decoding."""
        corners, classes, crowds = self._objects[index]
        boxes = torch.tensor(corners, dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return (
            clip(self._shown(index, boxes), self.image_size(index)),
            torch.tensor(classes, dtype=torch.int64),
            torch.tensor(crowds, dtype=torch.bool),
            torch.zeros(len(classes), dtype=torch.bool),
        )

    def presence(self) -> Presence:
        """Return which classes each image holds, without decoding."""
        return presence_of(((classes, crowds) for _, classes, crowds in self._objects), len(self.class_names))

    def _path(self, index: int) -> Path:
        return self._folder / str(self._images[index]["file_name"])

    def _shown(self, index: int, boxes: Tensor) -> Tensor:
        """Return boxes on the photo as it is shown."""
        path, record = self._path(index), self._images[index]
        stored, orientation = stored_size(path)
        recorded = (record["height"], record["width"])
        if recorded == stored:
            return turn_boxes(boxes, stored, orientation)
        if recorded == stored[::-1] and orientation >= 5:
            return boxes
        raise DataError(f"{path} is recorded as {recorded[1]} x {recorded[0]} and is {stored[1]} x {stored[0]}")


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what a COCO file holds, its outline checked."""
    if not path.is_file():
        raise MissingFileError(f"no COCO file at {path}")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    needed = {
        "images": ("id", "file_name", "height", "width"),
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
