"""What is known of each image before it is decoded: read and checked for a whole image set at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transferkit.datasets.annotation import VOCAnnotation, VOCObject, read_annotation
from transferkit.datasets.devkit import find_photos
from transferkit.datasets.photo import photo_size
from transferkit.errors import DataError, did_you_mean

Box = tuple[float, float, float, float]

_SHOWN = 10  # problems that one error spells out
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
        difficult: Which of them are marked as hard to recognise.
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


def raise_problems(problems: Sequence[str], heading: str) -> None:
    """Raise one :class:`DataError` that lists ``problems``, if there are any."""
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{heading}: {len(problems)} problem{'s' * (len(problems) > 1)}{shown}{more}")


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
    where = f"Annotations/{ids[0]}.xml" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")
    near = did_you_mean(name, class_names[1:])
    return f"class {name!r} in {where} is not one of {len(class_names) - 1} classes{near}"
