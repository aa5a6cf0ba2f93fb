"""Pascal VOC as a data set of annotated images: VOC2007, VOC2012, or your own data in their layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.annotated import AnnotatedImage, Presence, presence_of
from transferkit.datasets._photo import fingerprint, photo_size, read_photo
from transferkit.datasets.voc_files import (
    VOCAnnotation,
    VOCObject,
    find_photos,
    find_voc_folder,
    read_annotation,
    read_image_set,
)
from transferkit.errors import DataError, did_you_mean, listed, raise_problems, require
from transferkit.progress import Progress, track

Box = tuple[float, float, float, float]

_CLASSES_OF_ONES_OWN = (
    "classes of your own: class_names=[...], or find_class_names(folder) for all there are "
    "(--classes on a command line); skip_other_classes=True leaves out objects of others"
)

_SLACK = 1.0  # pixels that a box may reach out of its image: tools that count from 0 do


@dataclass(frozen=True)
class Record:
    """One image, ready to be decoded.

    Attributes:
        id: The image's id.
        photo: Where its pixels are.
        image_size: ``(height, width)``, pixels.
        upright: Turn the photo the way its EXIF orientation asks: the annotation was made on it turned.
        boxes: One per object: xyxy, pixels, 0-based, inside the image.
        classes: Their class numbers, 1..K-1.
        difficult: Which of them are marked as hard to recognize.
        truncated: Which of the boxes hold only a part of their object.
    """

    id: str
    photo: Path
    image_size: tuple[int, int]
    upright: bool
    boxes: tuple[Box, ...]
    classes: tuple[int, ...]
    difficult: tuple[bool, ...]
    truncated: tuple[bool, ...]


def read_records(
    folder: Path,
    ids: Iterable[str],
    class_names: Sequence[str],
    *,
    box_offset: Box,
    skip_other_classes: bool,
) -> list[Record]:
    """Read and check the annotations and photo headers of ``ids``.

    Args:
        folder: A ``VOC<year>`` folder.
        ids: Image ids.
        class_names: (K,) names, background first.
        box_offset: Taken from ``(xmin, ymin, xmax, ymax)`` as written.
        skip_other_classes: Leave out objects of classes that are not in ``class_names``, instead of an error.

    Raises:
        DataError: Something is missing, damaged or contradictory. Names every file, up to a screenful.
    """
    numbers = {name: number for number, name in enumerate(class_names) if number > 0}
    photos = find_photos(folder)
    records: list[Record] = []
    problems: list[str] = []
    unknown: dict[str, list[str]] = {}
    for image_id in ids:
        try:
            records.append(_read_record(folder, image_id, photos, numbers, box_offset, unknown))
        except DataError as error:
            problems.append(str(error))
    if unknown and not skip_other_classes:
        problems += [_unknown_class(name, where, class_names) for name, where in sorted(unknown.items())]
        problems[-1] += f"\n{_CLASSES_OF_ONES_OWN}"
    raise_problems(problems, f"the data in {folder} cannot be used")
    return records


def _read_record(
    folder: Path,
    image_id: str,
    photos: dict[str, str],
    numbers: dict[str, int],
    box_offset: Box,
    unknown: dict[str, list[str]],  # filled: class name to the images that have it
) -> Record:
    annotation, photo = _find(folder, image_id, photos)
    image_size, upright = _measure(annotation, photo, image_id)
    for name in {thing.name for thing in annotation.objects} - numbers.keys():
        unknown.setdefault(name, []).append(image_id)
    objects = [thing for thing in annotation.objects if thing.name in numbers]
    return Record(
        image_id,
        photo,
        image_size,
        upright,
        boxes=tuple(_box(thing, image_size, box_offset, image_id) for thing in objects),
        classes=tuple(numbers[thing.name] for thing in objects),
        difficult=tuple(thing.difficult for thing in objects),
        truncated=tuple(thing.truncated for thing in objects),
    )


def _find(folder: Path, image_id: str, photos: dict[str, str]) -> tuple[VOCAnnotation, Path]:
    path = folder / "Annotations" / f"{image_id}.xml"
    photo = photos.get(image_id)
    if not path.is_file() or photo is None:
        missing = [f"Annotations/{image_id}.xml"] * (not path.is_file())
        missing += [f"JPEGImages/{image_id}.jpg"] * (photo is None)
        raise DataError(f"image {image_id} is listed, but {' and '.join(missing)} is not there")
    return read_annotation(path), folder / "JPEGImages" / photo


def _measure(annotation: VOCAnnotation, photo: Path, image_id: str) -> tuple[tuple[int, int], bool]:
    # The devkit ignores EXIF. Newer tools annotate the picture as it is shown, and then say so with their size.
    stored, said = photo_size(photo), annotation.image_size
    if said == stored:
        return stored, False
    turned = photo_size(photo, upright=True)
    if said is None or said == turned:
        return turned, True
    raise DataError(
        f"Annotations/{image_id}.xml says that its image is {said[1]} x {said[0]} (width x height), "
        f"but JPEGImages/{photo.name} is {stored[1]} x {stored[0]}"
    )


def _box(thing: VOCObject, image_size: tuple[int, int], offset: Box, image_id: str) -> Box:
    height, width = image_size
    xmin, ymin, xmax, ymax = (side - shift for side, shift in zip(thing.box, offset, strict=True))
    clipped = max(xmin, 0.0), max(ymin, 0.0), min(xmax, float(width)), min(ymax, float(height))
    inside = min(xmin, ymin, width - xmax, height - ymax) >= -_SLACK
    if inside and clipped[0] < clipped[2] and clipped[1] < clipped[3]:
        return clipped
    written = " ".join(f"{side:g}" for side in thing.box)
    what = "is empty" if inside else "reaches out of the image"
    raise DataError(
        f"Annotations/{image_id}.xml: box {written} of {thing.name!r} {what}, {width} x {height} (w x h)"
    )


def _unknown_class(name: str, ids: Sequence[str], class_names: Sequence[str]) -> str:
    where = listed([f"Annotations/{image_id}.xml" for image_id in ids], 1)
    near = did_you_mean(name, class_names[1:])
    return f"class {name!r} in {where} is not one of {len(class_names) - 1} classes{near}"


VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)
"""VOC's 20 classes in alphabetical order, after the background."""

_OFFSETS = {"starts": (1, 1, 0, 0), "all": (1, 1, 1, 1), "nothing": (0, 0, 0, 0)}


class VOCDataset(Dataset[AnnotatedImage]):
    """The images of one image set of a VOCdevkit.

    All annotations and photo headers are read and checked when the data set is made, so that a mistake in the
    last file shows before training, together with all others. Pixels are decoded when an item is asked for;
    :meth:`verify` decodes all of them once.

    Args:
        root: The folder that holds ``VOCdevkit``, the ``VOCdevkit``, or the ``VOC2007`` folder in it.
        year: ``"2007"``, ``"2012"``, or whatever follows ``VOC`` in the folder's name.
        image_set: ``"trainval"``, ``"test"`` and so on: a file of ``ImageSets/Main`` without ``.txt``.
        max_images: Keep only the first so many.
        class_names: The classes in the order of their numbers; ``"background"`` is put before them if it is not
            there. :func:`find_class_names` collects them from the annotations.
        skip_other_classes: Leave out objects of any other class, instead of an error.
        subtract_one: From which of a box's four numbers one is taken. ``"starts"`` makes VOC's 1-based
            inclusive boxes 0-based and half-open; ``"all"`` is neon's recipe; ``"nothing"`` is for data written
            0-based and half-open. A box may then reach out of its image by one pixel, and is cut there.
        progress: Counts the annotations as they are read.

    Attributes:
        folder: The ``VOC<year>`` folder.
        ids: (N,) image ids.
        class_names: (K,) names, ``"background"`` first.

    Raises:
        MissingFileError: No VOC folder, or no such image set.
        DataError: Half a VOC folder, or annotations and photos that are missing, damaged, or contradict each
            other; names the files.
        ArgumentError: An argument out of range.

    Example:
        >>> import tempfile
        >>> from transferkit.datasets import DEMO_CLASSES, write_demo_devkit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_demo_devkit(folder, num_train=4, num_test=2)
        ...     data = VOCDataset(folder, image_set="test", class_names=DEMO_CLASSES)
        ...     item = data[1]
        >>> data.ids, item.image.shape
        (('000005', '000006'), torch.Size([3, 144, 112]))
        >>> data.class_names[:3], item.boxes.shape == (len(item.classes), 4)
        (('background', 'digit0', 'digit1'), True)
    """

    def __init__(
        self,
        root: Path | str,
        year: str = "2007",
        image_set: str = "trainval",
        *,
        max_images: int | None = None,
        class_names: Sequence[str] = VOC_CLASSES,
        skip_other_classes: bool = False,
        subtract_one: Literal["starts", "all", "nothing"] = "starts",
        progress: Progress = False,
    ) -> None:
        require(max_images is None or max_images > 0, "max_images", "positive or None", max_images)
        require(subtract_one in _OFFSETS, "subtract_one", f"one of {', '.join(_OFFSETS)}", subtract_one)
        self.folder = find_voc_folder(root, year)
        self.class_names = _with_background(class_names)
        self.ids = tuple(read_image_set(self.folder, image_set)[:max_images])
        self._records = read_records(
            self.folder,
            track(self.ids, progress, description=f"read {image_set}", unit="file"),
            self.class_names,
            box_offset=_OFFSETS[subtract_one],
            skip_other_classes=skip_other_classes,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Decode one image.

        Raises:
            DataError: Naming the photo: damaged or gone since the data set was made.
        """
        record = self._records[index]
        image = read_photo(record.photo, record.upright)
        return AnnotatedImage(image, *self.objects(index), id=record.id)

    def __repr__(self) -> str:
        return f"VOCDataset({len(self)} images, {len(self.class_names) - 1} classes, {str(self.folder)!r})"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` without decoding."""
        return self._records[index].image_size

    def fingerprint(self, index: int) -> str:
        """Return a digest of an image's file and its annotation: another one if either changes."""
        record = self._records[index]
        return fingerprint(
            record.photo, record.upright, record.boxes, record.classes, record.difficult, record.truncated
        )

    def photo_file(self, index: int) -> tuple[Path, str]:
        """Return an image's file, and how its pixels are read from that."""
        record = self._records[index]
        return record.photo, f"upright={record.upright}"

    def objects(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return an image's boxes, classes, difficult and truncated, without decoding."""
        record = self._records[index]
        return (
            torch.tensor(record.boxes, dtype=torch.float64).reshape(-1, 4),
            torch.tensor(record.classes, dtype=torch.int64),
            torch.tensor(record.difficult, dtype=torch.bool),
            torch.tensor(record.truncated, dtype=torch.bool),
        )

    def presence(self) -> Presence:
        """Return which classes each image holds, without decoding."""
        return presence_of(
            [(record.classes, record.difficult) for record in self._records], len(self.class_names)
        )

    def verify(self, progress: Progress = False) -> None:
        """Decode every photo once.

        Raises:
            DataError: Naming every damaged photo.
        """
        problems = []
        for record in track(self._records, progress, description="verify", unit="photo"):
            try:
                read_photo(record.photo)
            except DataError as error:
                problems.append(str(error))
        raise_problems(problems, f"photos in {self.folder} cannot be decoded")


def find_class_names(root: Path | str, year: str = "2007") -> tuple[str, ...]:
    """Return the classes that occur in a VOC folder's annotations, alphabetically, after ``"background"``.

    All annotations are read, whatever the image set, so that every set of the folder numbers its classes alike.

    Raises:
        MissingFileError: No VOC folder.
        DataError: Half of one, an annotation that cannot be read, or none with an object.
    """
    folder = find_voc_folder(root, year) / "Annotations"
    names = {thing.name for path in sorted(folder.glob("*.xml")) for thing in read_annotation(path).objects}
    if not names:
        raise DataError(f"no annotation in {folder} has an object")
    return _with_background(sorted(names))


def _with_background(class_names: Sequence[str]) -> tuple[str, ...]:
    names = tuple(class_names)
    names = names if names[:1] == ("background",) else ("background", *names)
    unique = len(set(names)) == len(names) and not isinstance(class_names, str)
    require(
        unique and len(names) > 1, "class_names", "different names, 'background' only at the start", class_names
    )
    return names
