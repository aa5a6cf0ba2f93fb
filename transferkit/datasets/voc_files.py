"""The files of a VOCdevkit: annotations, image sets and photos, read and written."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from transferkit.annotated import AnnotatedImage
from transferkit.errors import DataError, MissingFileError, did_you_mean

_SIDES = ("xmin", "ymin", "xmax", "ymax")

_FALSE, _TRUE = ("", "0", "false", "no", "unspecified"), ("1", "true", "yes")


@dataclass(frozen=True)
class VOCObject:
    """One ``<object>``.

    Attributes:
        name: The class, as written.
        box: ``(xmin, ymin, xmax, ymax)`` as written: pixels, counted from 1, the last one included.
        difficult: Marked as hard to recognize; VOC's evaluation ignores it.
        truncated: The box holds only a part of the object.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class VOCAnnotation:
    """One annotation file.

    Attributes:
        image_size: ``(height, width)`` in pixels, or None where the file does not say (some tools leave it out
            or write zeros).
        objects: In the order of the file. The ``<part>`` elements of VOC's person layout are not objects.
    """

    image_size: tuple[int, int] | None
    objects: tuple[VOCObject, ...]


def read_annotation(path: Path) -> VOCAnnotation:
    """Read one annotation file.

    Raises:
        DataError: Naming the file: unreadable, not XML, not a VOC annotation, or with an object that lacks a
            name or a usable box.
    """
    try:
        return parse_annotation(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path} {error}") from error


def parse_annotation(data: bytes) -> VOCAnnotation:
    """Return what an annotation says; see :func:`read_annotation`.

    Genuine VOC files vary, and all of them are accepted: fractional coordinates (VOC2011 on), the four sides in
    any order, ``truncated``, ``difficult`` left out, ``<part>``, ``<actions>`` and ``<point>`` elements.

    Example:
        >>> parse_annotation(b'''<annotation><object><name>dog</name><bndbox><xmin>48</xmin><ymin>240</ymin>
        ...     <xmax>195</xmax><ymax>371</ymax></bndbox></object></annotation>''').objects[0].box
        (48.0, 240.0, 195.0, 371.0)
    """
    root = _parse_xml(data)
    if root.tag != "annotation":
        raise DataError(f"is not a VOC annotation: its root is <{root.tag}>, not <annotation>")
    return VOCAnnotation(
        image_size=_image_size(root.find("size")),
        objects=tuple(_object(element, number) for number, element in enumerate(root.findall("object"), 1)),
    )


def _parse_xml(data: bytes) -> ElementTree.Element:
    # Entities can make a small file expand to gigabytes, and cannot be declared without these words. Fixing the
    # encoding keeps a file from hiding them behind another one.
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError("declares a document type or entities, which no VOC annotation does; refused")
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        raise DataError(f"is not well-formed XML in UTF-8: {error}") from error


def _image_size(size: ElementTree.Element | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (_number(size, side, "<size>") for side in ("height", "width"))
    if height == 0 or width == 0:
        return None
    if min(height, width) < 0 or not (height.is_integer() and width.is_integer()):
        raise DataError(f"has a <size> that is no size: {width:g} x {height:g}")
    return int(height), int(width)


def _object(element: ElementTree.Element, number: int) -> VOCObject:
    name = (element.findtext("name") or "").strip()
    where = f"object {number}" + (f" ({name})" if name else "")
    box = element.find("bndbox")
    if not name:
        raise DataError(f"has no <name> in {where}")
    if box is None:
        raise DataError(f"has no <bndbox> in {where}")
    xmin, ymin, xmax, ymax = (_number(box, side, where) for side in _SIDES)
    if xmax < xmin or ymax < ymin:
        raise DataError(
            f"has an inverted box in {where}: {xmin:g} {ymin:g} {xmax:g} {ymax:g} (xmin ymin xmax ymax)"
        )
    difficult, truncated = (_flag(element, tag, where) for tag in ("difficult", "truncated"))
    return VOCObject(name, (xmin, ymin, xmax, ymax), difficult, truncated)


def _number(element: ElementTree.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    if text is None:
        raise DataError(f"has no <{tag}> in {where}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"has no number in <{tag}> of {where}: {text.strip()!r}")
    return number


def _flag(element: ElementTree.Element, tag: str, where: str) -> bool:
    text = (element.findtext(tag) or "").strip().lower()
    if text in _FALSE or text in _TRUE:
        return text in _TRUE
    return _number(element, tag, where) != 0  # other tools write the fraction that is cut off


# The folders of a VOCdevkit: where a year's data lies, which images a set lists, where each photo is.

_PARTS = ("Annotations", "ImageSets", "JPEGImages")

_SUFFIXES = (".jpg", ".jpeg", ".png")


def find_voc_folder(root: Path | str, year: str = "2007") -> Path:
    """Return the folder ``VOC<year>`` in or around ``root``.

    Args:
        root: The folder that holds ``VOCdevkit``, the ``VOCdevkit`` itself, the ``VOC<year>`` folder in it, or
            any folder of yours with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        year: ``"2007"``, ``"2012"``, or whatever follows ``VOC`` in the folder's name.

    Raises:
        MissingFileError: No such folder.
        DataError: Half of one; says which parts are missing.
    """
    root = Path(root)
    places = (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root)
    for folder in places:
        missing = [part for part in _PARTS if not (folder / part).is_dir()]
        if not missing:
            return folder
        if len(missing) < len(_PARTS):
            raise DataError(f"{folder} is only a part of a VOC folder: it has no {' and no '.join(missing)}")
    raise MissingFileError(
        f"no VOC data for {year}: {root} is not a folder with {', '.join(_PARTS)} and holds no "
        f"VOCdevkit/VOC{year} or VOC{year}; transferkit.datasets.fetch_voc({year!r}) downloads it, and photos of "
        "your own go into these three folders, whatever the year is called"
    )


def read_image_set(folder: Path, image_set: str) -> list[str]:
    """Return the image ids that ``ImageSets/Main/<image_set>.txt`` lists, in its order, each once.

    Only the first word of a line counts, so that per-class files (``dog_trainval``: an id and 1, 0 or -1) and
    the other tasks' files (``Layout/trainval``: an id and an object) can be read too.

    Args:
        folder: A ``VOC<year>`` folder.
        image_set: The file's name without ``.txt``; below ``ImageSets`` if it has a slash, else below its
            ``Main``.

    Raises:
        MissingFileError: No such file; offers those that are there.
        DataError: The file is not text, or lists nothing.
    """
    sets = folder / "ImageSets"
    path = (sets if "/" in image_set else sets / "Main") / f"{image_set}.txt"
    if not path.is_file():
        raise MissingFileError(f"no image set {image_set!r}: {path} is missing{_offer(path)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a list of image ids: {error}") from error
    ids = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not ids:
        raise DataError(f"{path} lists no image")
    return ids


def find_photos(folder: Path) -> dict[str, str]:
    """Return the photos of ``JPEGImages`` as file names by id, from one listing of the folder.

    VOC's own are all ``<id>.jpg``; ``.jpeg`` and ``.png`` serve where there is no such file.
    """
    photos: dict[str, str] = {}
    files = [Path(name.name) for name in (folder / "JPEGImages").iterdir()]
    for suffix in reversed(_SUFFIXES):
        photos.update({file.stem: file.name for file in files if file.suffix.lower() == suffix})
    return photos


def _offer(path: Path) -> str:
    there = sorted(file.stem for file in path.parent.glob("*.txt"))
    per_class = "_" in path.stem
    plain = [name for name in there if per_class or "_" not in name] or there
    near = did_you_mean(path.stem, plain)
    return near or (f"; there are {', '.join(plain[:8])}" if plain else f"; {path.parent} has no .txt file")


# Write images and their objects the way Pascal VOC lays them out.


def write_voc_images(
    folder: Path,
    image_set: str,
    images: Iterable[AnnotatedImage],
    class_names: Sequence[str],
    *,
    quality: int = 95,
) -> None:
    """Add ``images`` and an image set that lists them to a ``VOC<year>`` folder.

    Args:
        folder: The ``VOC<year>`` folder; made where it is absent.
        image_set: Written as ``ImageSets/Main/<image_set>.txt``, with a file per class beside it.
        images: With boxes 0-based and half-open, in whole pixels; consumed one at a time.
        class_names: (K,) names, ``"background"`` first.
        quality: Of the JPEG files.
    """
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    marks: dict[str, list[int]] = {}  # image id -> per class 1 present, 0 only difficult ones, -1 absent
    for item in images:
        photo = Image.fromarray(item.image.permute(1, 2, 0).numpy())
        photo.save(folder / "JPEGImages" / f"{item.id}.jpg", quality=quality, subsampling=0)
        (folder / "Annotations" / f"{item.id}.xml").write_text(
            _xml(item, class_names, folder.name), encoding="utf-8"
        )
        marks[item.id] = [_mark(item, number) for number in range(len(class_names))]
    sets = folder / "ImageSets" / "Main"
    (sets / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in marks), encoding="utf-8")
    for number, class_name in enumerate(class_names[1:], 1):
        lines = "".join(f"{name} {row[number]:2d}\n" for name, row in marks.items())
        (sets / f"{class_name}_{image_set}.txt").write_text(lines, encoding="utf-8")


def _mark(item: AnnotatedImage, number: int) -> int:
    mine = item.classes == number
    return -1 if not mine.any() else int(not item.difficult[mine].all())


def _xml(item: AnnotatedImage, class_names: Sequence[str], folder_name: str) -> str:
    root = ElementTree.Element("annotation")
    _add(root, folder=folder_name, filename=f"{item.id}.jpg")
    depth, height, width = item.image.shape
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _add(root, segmented=0)
    for (xmin, ymin, xmax, ymax), number, truncated, difficult in zip(
        item.boxes.tolist(),
        item.classes.tolist(),
        item.truncated.tolist(),
        item.difficult.tolist(),
        strict=True,
    ):
        thing = ElementTree.SubElement(root, "object")
        flags = {"truncated": int(truncated), "difficult": int(difficult)}
        _add(thing, name=class_names[number], pose="Unspecified", **flags)
        box = ElementTree.SubElement(thing, "bndbox")
        _add(box, xmin=f"{xmin + 1:g}", ymin=f"{ymin + 1:g}", xmax=f"{xmax:g}", ymax=f"{ymax:g}")
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, **children: object) -> None:
    for tag, text in children.items():
        ElementTree.SubElement(parent, tag).text = str(text)
