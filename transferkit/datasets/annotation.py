"""One VOC annotation file: an image's size and its objects, as written."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from transferkit.errors import DataError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FALSE, _TRUE = ("", "0", "false", "no", "unspecified"), ("1", "true", "yes")


@dataclass(frozen=True)
class VOCObject:
    """One ``<object>``.

    Attributes:
        name: The class, as written.
        box: ``(xmin, ymin, xmax, ymax)`` as written: pixels, counted from 1, the last one included.
        difficult: Marked as hard to recognise; VOC's evaluation ignores it.
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
