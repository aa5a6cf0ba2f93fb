"""Pascal VOC as a data set of annotated images: VOC2007, VOC2012, or your own data in their layout."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.annotated import AnnotatedImage, Presence, presence_of
from transferkit.datasets._objects import (
    BadBoxes,
    BadPhotos,
    Box,
    BoxesOn,
    BoxRule,
    checked_class_names,
    form_of,
    numbers_of,
    require_frame,
)
from transferkit.datasets._photo import fingerprint, read_photo, stored_size
from transferkit.datasets.voc_files import (
    FlatFiles,
    NamedFiles,
    VOCAnnotation,
    VOCFiles,
    VOCObject,
    annotation_of,
    by_set,
    find_voc_folder,
    read_image_set,
)
from transferkit.errors import DataError, MissingFileError, did_you_mean, listed, raise_problems, require
from transferkit.file_index import remembering
from transferkit.progress import Progress, track

_CLASSES_OF_ONES_OWN = (
    "classes of your own: class_names=[...], or find_class_names(folder) for all there are "
    "(--classes on a command line); skip_other_classes=True leaves out objects of others"
)


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


class _Records:
    """Records in columns: a million of them as they are would take two gigabytes."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._photos: list[str] = []
        self.sizes, self._ends, self._boxes, self.classes = array("q"), array("q", [0]), array("d"), array("q")
        self._upright, self._difficult, self._truncated = bytearray(), bytearray(), bytearray()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, record: Record) -> None:
        self._ids.append(record.id)
        self._photos.append(str(record.photo))
        self.sizes.extend(record.image_size)
        self._upright.append(record.upright)
        self._boxes.extend(chain.from_iterable(record.boxes))
        self.classes.extend(record.classes)
        self._difficult.extend(record.difficult)
        self._truncated.extend(record.truncated)
        self._ends.append(len(self.classes))

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        begin, end = self._ends[index : index + 2]
        sides = self._boxes[4 * begin : 4 * end]
        return Record(
            self._ids[index],
            Path(self._photos[index]),
            (self.sizes[2 * index], self.sizes[2 * index + 1]),
            bool(self._upright[index]),
            tuple(zip(sides[::4], sides[1::4], sides[2::4], sides[3::4], strict=True)),
            tuple(self.classes[begin:end]),
            tuple(map(bool, self._difficult[begin:end])),
            tuple(map(bool, self._truncated[begin:end])),
        )

    def photo(self, index: int) -> tuple[Path, str]:
        return Path(self._photos[index]), f"upright={bool(self._upright[index])}"

    def labels(self) -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
        for begin, end in pairwise(self._ends):
            yield self.classes[begin:end], self._difficult[begin:end]  # type: ignore[misc]  # 0 and 1

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))


class _Reader:
    """Reads the annotations of a folder one by one, and keeps what concerns all of them."""

    def __init__(
        self,
        files: VOCFiles,
        class_names: Sequence[str],
        rule: BoxRule,
        subtract_one: str,
        boxes_on: BoxesOn,
    ) -> None:
        require(subtract_one in _OFFSETS, "subtract_one", f"one of {', '.join(_OFFSETS)}", subtract_one)
        require_frame(boxes_on)
        self.class_names, self.rule = checked_class_names(class_names, add_background=True), rule
        self._files, self._offset, self._boxes_on = files, _OFFSETS[subtract_one], boxes_on
        self._numbers = numbers_of(self.class_names)
        self._taken: dict[str, str] = {}  # annotation to the image that has it
        self._unknown: dict[str, list[str]] = {}  # class name to the images that have it

    def records(self, folder: Path, ids: Iterable[str], skip_other_classes: bool) -> _Records:
        """Read and check the annotations and photo headers of ``ids``; raise all that is wrong with them."""
        records = _Records()
        problems: list[str] = []
        for image_id in ids:
            try:
                records.add(self.record(image_id))
            except DataError as error:
                self.rule.photo(str(error))
        unknown = {} if skip_other_classes else self._unknown
        for name, where in sorted(unknown.items()):
            shown, near = listed(where, 1), did_you_mean(name, self.class_names[1:])
            problems.append(
                f"class {name!r} in {shown} is not one of {len(self.class_names) - 1} classes{near}"
            )
        advice = _CLASSES_OF_ONES_OWN if unknown else ""
        self.rule.raise_problems(f"the data in {folder} cannot be used", problems, advice)
        return records

    def record(self, image_id: str) -> Record:
        annotation, photo = self._find(image_id)
        image_size, upright, used = self._measure(annotation, photo, image_id)
        for name in dict.fromkeys(thing.name for thing in annotation.objects):
            if form_of(name) not in self._numbers:
                self._unknown.setdefault(name, []).append(self._files.annotation_name.format(image_id))
        things = [thing for thing in annotation.objects if form_of(thing.name) in self._numbers]
        if not used:
            self.rule.counts["skipped"] += len(things)
        objects = [
            (box, thing)
            for thing in things
            if used and (box := self._box(thing, image_size, image_id)) is not None
        ]
        return Record(
            image_id,
            photo,
            image_size,
            upright,
            boxes=tuple(box for box, _ in objects),
            classes=tuple(self._numbers[form_of(thing.name)] for _, thing in objects),
            difficult=tuple(thing.difficult for _, thing in objects),
            truncated=tuple(thing.truncated for _, thing in objects),
        )

    def _find(self, image_id: str) -> tuple[VOCAnnotation, Path]:
        annotations, photos = self._files.annotations[image_id], self._files.photos[image_id]
        if not annotations or not photos:
            missing = [self._files.annotation_name.format(image_id)] * (not annotations)
            missing += [self._files.photo_name.format(image_id)] * (not photos)
            raise DataError(f"image {image_id} is listed, but {' and '.join(missing)} is not there")
        other = self._taken.setdefault(annotations[0], image_id)
        if other != image_id:
            raise DataError(
                f"images {other!r} and {image_id!r} are both Annotations/{annotations[0]}; list one"
            )
        annotation = annotation_of(f"{self._files.annotations.folder}/{annotations[0]}")
        if len(annotations) == len(photos) == 1:
            return annotation, Path(f"{self._files.photos.folder}/{photos[0]}")
        named = [photo for photo in photos if form_of(Path(photo).name) == form_of(annotation.filename)]
        beside = [photo for photo in named or photos if Path(photo).parent == Path(annotations[0]).parent]
        for found in (annotations, found_photos := beside or named or photos):
            if len({Path(path).parent for path in found}) > 1:
                raise DataError(f"image {image_id} may be any of {listed(found, 3)}")
        return annotation, self._files.photos.folder / found_photos[0]

    def _measure(
        self, annotation: VOCAnnotation, photo: Path, image_id: str
    ) -> tuple[tuple[int, int], bool, bool]:
        """Return the size, whether the photo is turned upright, and whether its objects are used."""
        # The devkit ignores EXIF. Newer tools annotate the picture as it is shown, and then say so with their size.
        (stored, orientation), said = stored_size(photo), annotation.image_size
        turned = stored[::-1] if orientation >= 5 else stored
        upright = said != stored if self._boxes_on == "recorded" else self._boxes_on == "shown"
        right = said in (None, stored, turned) or self.rule.wrong_size(
            f"{self._files.annotation_name.format(image_id)} says that its image is {said[1]} x {said[0]} "
            f"(width x height), but {photo.parent.name}/{photo.name} is {stored[1]} x {stored[0]}"
        )
        return (turned if upright else stored), upright, right

    def _box(self, thing: VOCObject, image_size: tuple[int, int], image_id: str) -> Box | None:
        sides = [side - shift for side, shift in zip(thing.box, self._offset, strict=True)]
        (height, width), (xmin, ymin, xmax, ymax) = image_size, sides
        if 0 <= xmin < xmax <= width and 0 <= ymin < ymax <= height and max(xmax, ymax) > 1:
            return xmin, ymin, xmax, ymax  # as nearly all are, of millions
        written = " ".join(f"{side:g}" for side in thing.box)
        where = self._files.annotation_name.format(image_id)
        return self.rule(sides, image_size, f"{where}: box {written} of {thing.name!r}")


VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
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
        bad_boxes: What becomes of boxes that reach out farther or are empty, and of the objects in photos that are
            not of the size that is written: ``"error"``, ``"cut"`` at the border (what has no part inside is left
            out), ``"skip"``, or ``"keep"``. A box that ends before it starts is never kept.
        boxes_on: Whether boxes refer to pixels as they are ``"stored"``, or as they are ``"shown"`` when the photo is
            turned the way its EXIF orientation asks; ``"recorded"`` takes the one whose size is written, the stored
            one where both have it, the shown one where none is.
        bad_photos: What becomes of photos that cannot be read, or whose annotation cannot: ``"error"`` or ``"skip"``.
        progress: Counts the annotations as they are read.
        index: A file that remembers what annotations and photo headers say, for as long as their sizes and times of
            change stay as they are; made where it is not there. ``None`` reads them all each time.

    Attributes:
        folder: The ``VOC<year>`` folder.
        ids: (N,) image ids.
        class_names: (K,) names, ``"background"`` first.
        bad_box_counts: How many boxes were ``cut``, ``skipped`` and ``kept``, and how many ``sizes`` were wrong.
        left_out: What is wrong with each photo that was left out.

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
        bad_boxes: BadBoxes = "error",
        boxes_on: BoxesOn = "recorded",
        bad_photos: BadPhotos = "error",
        progress: Progress = False,
        index: Path | None = None,
    ) -> None:
        require(max_images is None or max_images > 0, "max_images", "positive or None", max_images)
        self.folder = find_voc_folder(root, year)
        files = VOCFiles(self.folder)
        ids = read_image_set(self.folder, image_set, files)[:max_images]
        reader = _Reader(files, class_names, BoxRule(bad_boxes, bad_photos), subtract_one, boxes_on)
        tracked = track(ids, progress, description=f"read {image_set}", unit="file")
        with remembering(index):
            self._read(reader, tracked, skip_other_classes)

    def _read(self, reader: _Reader, ids: Iterable[str], skip_other_classes: bool) -> None:
        self._records = reader.records(self.folder, ids, skip_other_classes)
        self.class_names, self.ids = reader.class_names, tuple(record.id for record in self._records)
        self.bad_box_counts, self.left_out = reader.rule.counts, tuple(reader.rule.left_out)

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
        return f"{type(self).__name__}({len(self)} images, {len(self.class_names) - 1} classes, {str(self.folder)!r})"

    def image_size(self, index: int) -> tuple[int, int]:
        """Return ``(height, width)`` without decoding."""
        height, width = (
            self._records.sizes[2 * index : 2 * index + 2] if index >= 0 else self._records[index].image_size
        )
        return height, width

    def fingerprint(self, index: int) -> str:
        """Return a digest of an image's file and its annotation: another one if either changes."""
        record = self._records[index]
        return fingerprint(
            record.photo, record.upright, record.boxes, record.classes, record.difficult, record.truncated
        )

    def photo_file(self, index: int) -> tuple[Path, str]:
        """Return an image's file, and how its pixels are read from that."""
        return self._records.photo(index)

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
        return presence_of(self._records.labels(), len(self.class_names))

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


class FolderDataset(VOCDataset):
    """Photos and their XML in any folder, as labelImg and others write them.

    A photo and its XML have one name and lie side by side, or at the same place below parallel folders (``images``
    and ``annotations``); subfolders, blanks and any photo's suffix are fine. What the XML says of the photo's path is
    not asked. Photos without XML are not used.

    Args:
        folder: Holds both.
        image_set: ``"train"``, ``"val"`` or ``"test"``, where every file is in a folder that names one.
        class_names: The classes in the order of their numbers; by default all that the XML names, sorted.
        skip_other_classes: As in :class:`VOCDataset`, and so are the others.

    Attributes:
        unlisted: The photos without XML, paths below the folder.

    Raises:
        MissingFileError: There is no XML.
        DataError: XML and photos that are missing, damaged, or contradict each other; names all.

    Example:
        >>> import tempfile
        >>> from transferkit.datasets import write_demo_devkit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_demo_devkit(folder, num_train=4, num_test=2)
        ...     len(FolderDataset(folder))
        6
    """

    def __init__(
        self,
        folder: Path | str,
        image_set: str = "train",
        *,
        class_names: Sequence[str] | None = None,
        skip_other_classes: bool = False,
        subtract_one: Literal["starts", "all", "nothing"] = "starts",
        bad_boxes: BadBoxes = "error",
        boxes_on: BoxesOn = "recorded",
        bad_photos: BadPhotos = "error",
        progress: Progress = False,
    ) -> None:
        self.folder = Path(folder)
        files = FlatFiles(self.folder)
        ids = list(by_set(files.annotations).get(image_set, {}))
        if not ids:
            raise MissingFileError(
                f"no XML of set {image_set!r} in {folder}; transferkit check tells what is there"
            )
        names = class_names or find_names(self.folder, skip_bad=True)
        reader = _Reader(files, names, BoxRule(bad_boxes, bad_photos), subtract_one, boxes_on)
        self._read(reader, track(ids, progress, description="read", unit="file"), skip_other_classes)
        alone = (place for place in files.photos if place not in files.annotations)
        self.unlisted = [path for place in alone for path in files.photos[place]]


def find_class_names(root: Path | str, year: str = "2007") -> tuple[str, ...]:
    """Return the classes that occur in a VOC folder's annotations, alphabetically, after ``"background"``.

    All annotations are read, whatever the image set, so that every set of the folder numbers its classes alike.

    Raises:
        MissingFileError: No VOC folder.
        DataError: Half of one, an annotation that cannot be read, or none with an object.
    """
    return find_names(find_voc_folder(root, year) / "Annotations")


def find_names(folder: Path, skip_bad: bool = False) -> tuple[str, ...]:
    """Return the classes in all XML below a folder; a bad file is an error, or left to the data set's reader."""
    names: dict[str, str] = {}  # by the form in which they are compared
    for path in NamedFiles(folder, (".xml",)).all():
        with suppress(*[DataError] * skip_bad):
            names.update(
                (form_of(thing.name), thing.name) for thing in annotation_of(f"{folder}/{path}").objects
            )
    if not names:
        raise DataError(f"no annotation in {folder} has an object")
    return checked_class_names(sorted(names.values()), add_background=True)
