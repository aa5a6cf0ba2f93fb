"""Images and their objects written the way Pascal VOC lays them out."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from transferkit.annotated import AnnotatedImage
from transferkit.datasets._objects import PLAIN_TEXT, checked_class_names, repeated
from transferkit.errors import DataError, OutputError, TransferKitError, require
from transferkit.files import as_file_name, fits_a_file
from transferkit.labeling.decision import Objects
from transferkit.sampler._source import require_photo


def write_voc_images(
    folder: Path,
    image_set: str,
    images: Iterable[AnnotatedImage],
    class_names: Sequence[str],
    *,
    quality: int = 95,
    rename: bool = False,
) -> tuple[str, ...]:
    """Add ``images`` and an image set that lists them to a ``VOC<year>`` folder.

    Nothing that is there is written over, and nothing outside the folder is written. After an error, nothing of this
    call is left. Slashes in an id make subfolders.

    Args:
        folder: The ``VOC<year>`` folder; made where it is absent.
        image_set: Written as ``ImageSets/Main/<image_set>.txt``, with a file per class beside it.
        images: With boxes 0-based and half-open; consumed one at a time.
        class_names: (K,) names, ``"background"`` first.
        quality: Of the JPEG files.
        rename: Give an image whose id is taken, or is no name for a file, another id, and the file of such a class
            another name, instead of an error.

    Returns:
        (N,) ids as written.

    Raises:
        DataError: An id that is taken, or that is no name for a file; or an image that is no RGB bytes.
        ArgumentError: Class names, objects or an image set of which the same is true.
        OutputError: A file cannot be written.
    """
    names = checked_class_names(class_names, add_background=False)
    sets = _set_files(folder, image_set, names, rename)
    written: list[Path] = []
    marks: dict[str, list[int]] = {}  # image id -> per class 1 present, 0 only difficult ones, -1 absent
    try:
        for item in images:
            require_photo(item)
            name = _free_id(folder, str(item.id), rename)
            annotation = _xml(item, name, names, folder.name).encode()
            _write(folder / "Annotations" / f"{name}.xml", annotation, written)
            photo = io.BytesIO()
            picture = Image.fromarray(item.image.permute(1, 2, 0).numpy())
            picture.save(photo, "JPEG", quality=quality, subsampling=0)
            _write(folder / "JPEGImages" / f"{name}.jpg", photo.getvalue(), written)
            marks[name] = [_mark(item, number) for number in range(len(names))]
        for number, path in sets.items():
            lines = (f"{name} {row[number]:2d}\n" if number else f"{name}\n" for name, row in marks.items())
            _write(path, "".join(lines).encode(), written)
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, TransferKitError):
            raise OutputError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error
        raise
    return tuple(marks)


def _write(path: Path, content: bytes, written: list[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        written.append(path)
        file.write(content)


def _set_files(folder: Path, image_set: str, class_names: Sequence[str], rename: bool) -> dict[int, Path]:
    """Return the image set's file under 0, and that of each class under its number."""
    require(fits_a_file(image_set), "image_set", "a name that a file can have", image_set)
    odd = [name for name in class_names if not fits_a_file(name)]
    advice = "names that a file can have, or rename=True to give the files of these others"
    require(rename or not odd, "class_names", advice, odd)
    unreadable = [name for name in class_names if not PLAIN_TEXT.fullmatch(name)]
    require(not unreadable, "class_names", "text that an XML file can hold", unreadable)
    plain = [as_file_name(name) if name in odd else name for name in class_names]
    files = {
        number: f"{name}_{image_set}.txt" if number else f"{image_set}.txt" for number, name in enumerate(plain)
    }
    paths = {number: folder / "ImageSets" / "Main" / name for number, name in files.items()}
    there = [str(path) for path in paths.values() if path.exists()] or repeated(paths.values())
    if there:
        raise DataError(f"{there[0]} is there already, and would be written over; give another image_set")
    return paths


def _free_id(folder: Path, image_id: str, rename: bool) -> str:
    fits = all(map(fits_a_file, image_id.split("/"))) and PLAIN_TEXT.fullmatch(image_id)
    name, number = image_id if fits else as_file_name(image_id), 1
    if not (fits or rename):
        raise DataError(f"image id {image_id!r} is no name for a file; rename=True writes it as {name!r}")
    files = ("Annotations/{}.xml", "JPEGImages/{}.jpg")
    start = name
    while any((folder / file.format(name)).exists() for file in files):
        if not rename:
            raise DataError(
                f"image id {image_id!r} is taken: it is in {folder} already, or twice among the images; rename=True "
                "writes it under another"
            )
        number += 1
        name = f"{start}_{number}"
    return name


def _mark(item: AnnotatedImage, number: int) -> int:
    mine = item.classes == number
    return -1 if not mine.any() else int(not item.difficult[mine].all())


def _xml(item: AnnotatedImage, name: str, class_names: Sequence[str], folder_name: str) -> str:
    things = Objects.of(item.boxes, item.classes, item.difficult, item.truncated)
    most = int(things.classes.max()) if len(things) else 0
    require(most < len(class_names), "classes", f"below {len(class_names)}, the number of names", most)
    root = ElementTree.Element("annotation")
    _add(root, folder=folder_name, filename=f"{name}.jpg")
    depth, height, width = item.image.shape
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _add(root, segmented=0)
    columns = (things.boxes, things.classes, things.truncated, things.difficult)
    for (xmin, ymin, xmax, ymax), number, truncated, difficult in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        thing = ElementTree.SubElement(root, "object")
        flags = {"truncated": int(truncated), "difficult": int(difficult)}
        _add(thing, name=class_names[number], pose="Unspecified", **flags)
        box = ElementTree.SubElement(thing, "bndbox")
        sides = {"xmin": xmin + 1, "ymin": ymin + 1, "xmax": xmax, "ymax": ymax}
        _add(box, **{tag: int(side) if side.is_integer() else side for tag, side in sides.items()})
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, **children: object) -> None:
    for tag, text in children.items():
        ElementTree.SubElement(parent, tag).text = str(text)
