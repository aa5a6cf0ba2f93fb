"""The files of a VOCdevkit: annotations, image sets and photos."""

from __future__ import annotations

import codecs
import math
import os
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transferkit.errors import DataError, MissingFileError, did_you_mean, listed
from transferkit.file_index import found_in
from transferkit.files import is_file, leaves_its_folder

_SIDES = ("xmin", "ymin", "xmax", "ymax")

_FALSE, _TRUE = ("", "0", "false", "no", "unspecified"), ("1", "true", "yes")


@dataclass(frozen=True)
class VOCObject:
    """One ``<object>``.

    Attributes:
        name: The class, as written.
        box: ``(xmin, ymin, xmax, ymax)`` as written: pixels, counted from 1, the last one included; NaN for what is
            no number.
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
        filename: Of the photo, as written.
    """

    image_size: tuple[int, int] | None
    objects: tuple[VOCObject, ...]
    filename: str = field(default="", compare=False)


def annotation_of(path: str) -> VOCAnnotation:
    """Return what :func:`read_annotation` does, from the index if there is one that knows."""

    def read() -> list[Any]:
        said = read_annotation(Path(path))
        objects = [[thing.name, thing.box, thing.difficult, thing.truncated] for thing in said.objects]
        return [said.image_size, objects, said.filename]

    size, objects, filename = found_in(path, "voc", read)
    things = (VOCObject(name, tuple(box), difficult, truncated) for name, box, difficult, truncated in objects)
    return VOCAnnotation(None if size is None else tuple(size), tuple(things), filename)


def read_annotation(path: Path) -> VOCAnnotation:
    """Read one annotation file.

    Raises:
        DataError: Naming the file: unreadable, not XML, not a VOC annotation, or with an object that lacks a
            name or a box.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError("cannot be read: it is not a file")
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
        filename=(root.findtext("filename") or "").strip(),
    )


def _parse_xml(data: bytes) -> ElementTree.Element:
    text = _xml_text(data)
    # Entities can make a small file expand to gigabytes, and cannot be declared without these words.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError("declares a document type or entities, which no VOC annotation does; refused")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"is not well-formed XML: {error}") from error


_DECLARED = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")

# Encodings that have ASCII in them, as Python calls them; the declaration is read as ASCII.
_ENCODINGS = re.compile(
    r"ascii|utf-8|(iso8859|mac)-\w+|cp(125|8|9)\d+|gb\w+|big5\w*|euc_\w+|shift_jis\w*|koi8-\w"
)


def _xml_text(data: bytes) -> str:
    """Decode a file as its first bytes say, or its declaration; every other way reads other names from it."""
    declared = _DECLARED.match(data)
    encoding = "utf-8"
    if declared:
        try:
            encoding = codecs.lookup(declared[1].decode()).name
        except LookupError:
            encoding = "unknown"
    if encoding.startswith("utf-16"):  # as the .NET framework declares what it then writes as UTF-8
        encoding = "utf-8"
    if declared and not _ENCODINGS.fullmatch(encoding):
        raise DataError(f"declares the encoding {declared[1].decode()!r}, refused; save it as UTF-8")
    zeros = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
    return decoded(data, zeros.get(data[:2], "gb18030" if encoding.startswith("gb") else encoding))


def decoded(data: bytes, encoding: str) -> str:
    """Return text in an encoding, or in the one that its first bytes tell."""
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    marked = next((its for mark, its in marks.items() if data.startswith(mark)), encoding)
    try:
        return data.decode(marked)
    except UnicodeDecodeError as error:
        raise DataError(f"is not well-formed text in {marked}, so it is refused: {error}") from error


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
    xmin, ymin, xmax, ymax = (float_of(_text(box, side, where)) for side in _SIDES)
    difficult, truncated = (_flag(element, tag, where) for tag in ("difficult", "truncated"))
    return VOCObject(name, (xmin, ymin, xmax, ymax), difficult, truncated)


def _number(element: ElementTree.Element, tag: str, where: str) -> float:
    text = _text(element, tag, where)
    number = float_of(text)
    if not math.isfinite(number):
        raise DataError(f"has no number in <{tag}> of {where}: {text.strip()!r}")
    return number


def _text(element: ElementTree.Element, tag: str, where: str) -> str:
    text = element.findtext(tag)
    if text is None:
        raise DataError(f"has no <{tag}> in {where}")
    return text


def float_of(text: str) -> float:
    """Return a number; NaN where there is none."""
    try:
        return math.nan if "_" in text else float(text)  # 1_0 is Python's
    except ValueError:
        return math.nan


def _flag(element: ElementTree.Element, tag: str, where: str) -> bool:
    text = (element.findtext(tag) or "").strip().lower()
    if text in _FALSE or text in _TRUE:
        return text in _TRUE
    return _number(element, tag, where) != 0  # other tools write the fraction that is cut off


# The folders of a VOCdevkit: where a year's data lies, which images a set lists, where each photo is.

_PARTS = ("Annotations", "ImageSets", "JPEGImages")

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2")


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


class NamedFiles:
    """The files of a folder and of its subfolders, found by name without ending, in whatever Unicode form.

    Args:
        folder: The folder.
        suffixes: Of the files that count, in lower case; the first ones come first.
        name_of: Makes a name of a path below the folder without its ending; by default it is that path.
    """

    def __init__(
        self, folder: Path, suffixes: Sequence[str], name_of: Callable[[str], str] | None = None
    ) -> None:
        self.folder = folder
        self._files: dict[str, list[str]] = {}  # below the folder, by name without ending
        self._forms: dict[str, set[str]] = {}
        for path in files_below(folder):
            name, suffix = os.path.splitext(path)  # noqa: PTH122
            if suffix.lower() in suffixes:
                name = name if name_of is None else name_of(name)
                self._files.setdefault(name, []).append(path)
                if not name.isascii():
                    self._forms.setdefault(unicodedata.normalize("NFC", name), set()).add(name)
        for paths in (several for several in self._files.values() if len(several) > 1):
            paths.sort(key=lambda path: (suffixes.index(Path(path).suffix.lower()), path))

    def __getitem__(self, name: str) -> list[str]:
        """Return the files of a name, paths below the folder; none where only two other forms of it are there."""
        if name in self._files:
            return self._files[name]
        alike = self._forms.get(unicodedata.normalize("NFC", name), ())
        return self._files[next(iter(alike))] if len(alike) == 1 else []

    def __contains__(self, name: str) -> bool:
        return bool(self[name])

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def all(self) -> list[str]:
        """Return all files, sorted."""
        return sorted(path for paths in self._files.values() for path in paths)


def files_below(folder: Path) -> list[str]:
    """Return all files below a folder with slashes; not "._" files, as macOS writes, and not in hidden folders."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        start = Path(place).relative_to(folder).as_posix()
        found += [name if start == "." else f"{start}/{name}" for name in names if not name.startswith("._")]
    return found


_PARALLEL = (
    "image",
    "images",
    "img",
    "imgs",
    "photos",
    "jpegimages",
    "annotation",
    "annotations",
    "labels",
    "xml",
)


def place_of(path: str) -> str:
    """Return a path without the folders that part photos from what is said of them.

    Example:
        >>> place_of("train/images/cats/1"), place_of("train/annotations/cats/1")
        ('train/cats/1', 'train/cats/1')
    """
    *folders, name = path.split("/")
    return "/".join([*(folder for folder in folders if folder.lower() not in _PARALLEL), name])


class PhotoFiles:
    """The photos of a folder, found by what a table or a COCO file calls them: their path, or one end of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = sorted(path for path in files_below(folder) if is_photo(path))
        self._named: dict[str, list[str]] = {}  # by name, with and without ending
        for path in self.paths:
            name = unicodedata.normalize("NFC", PurePosixPath(path).name)
            for form in (name, PurePosixPath(name).stem):
                self._named.setdefault(form, []).append(path)

    def find(self, name: str, image_set: str = "") -> Path:
        """Return a photo; of several of a name that of the folder ``image_set``.

        Raises:
            DataError: None, or any of several.
        """
        if not leaves_its_folder(name) and is_file(self.folder / name):
            return self.folder / name
        wanted = _parts(name)
        alike = {path: _parts(path)[:-1] for path in self._named.get(wanted[-1], ())}
        ends = {path: min(len(folders), len(wanted) - 1) for path, folders in alike.items()}
        fits = [path for path, n in ends.items() if alike[path][len(alike[path]) - n :] == wanted[-n - 1 : -1]]
        best = [path for path in fits if ends[path] == max(ends[one] for one in fits)]
        of_set = [path for path in best if image_set in alike[path]]
        found = of_set if len(best) > 1 and of_set else best
        if len(found) != 1:
            raise DataError(f"image {name} may be {listed(found, 3)}" if found else f"no image {name}")
        return self.folder / found[0]

    def has(self, name: str) -> bool:
        """Return whether there is a photo of a name, or several."""
        return bool(name) and _parts(name)[-1] in self._named


_SETS = {"train": "train", "training": "train", "trainval": "train", "val": "val", "valid": "val"}
_SETS |= {"validation": "val", "test": "test", "testing": "test"}


def by_set(paths: Iterable[str], stems: bool = False) -> dict[str, dict[str, str]]:
    """Return paths by the image set that a folder, or the file if ``stems``, of each names, and what is left of each.

    Where one names no set, as where classes are called so, all are the set ``"train"``.

    Example:
        >>> by_set(["train/cat/1.jpg", "valid/cat/2.jpg"])
        {'train': {'train/cat/1.jpg': 'cat/1.jpg'}, 'val': {'valid/cat/2.jpg': 'cat/2.jpg'}}
        >>> by_set(["train/1.jpg", "bus/2.jpg"])
        {'train': {'train/1.jpg': 'train/1.jpg', 'bus/2.jpg': 'bus/2.jpg'}}
    """
    found: dict[str, dict[str, str]] = {}
    every = list(paths)
    for path in every:
        parts = path.split("/")
        for place, part in enumerate(parts if stems else parts[:-1]):
            words = [_SETS[word] for word in re.split("[^a-z]+", part.lower()) if word in _SETS]
            if words:
                found.setdefault(words[0], {})[path] = "/".join(parts[:place] + parts[place + 1 :])
                break
        else:
            return {"train": {path: path for path in every}}
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def is_photo(path: str) -> bool:
    """Return whether a file has a photo's ending."""
    return path.lower().endswith(PHOTO_SUFFIXES)


def _parts(path: str) -> list[str]:
    return place_of(unicodedata.normalize("NFC", path.replace("\\", "/"))).split("/")


class VOCFiles:
    """The annotations and photos of a ``VOC<year>`` folder, from one listing of each.

    VOC's own photos are all ``<id>.jpg``; other kinds serve where there is no such file, or where the annotation
    names them.
    """

    annotation_name, photo_name = "Annotations/{}.xml", "JPEGImages/{}.jpg"

    def __init__(self, folder: Path) -> None:
        self.annotations = NamedFiles(folder / "Annotations", (".xml",))
        self.photos = NamedFiles(folder / "JPEGImages", PHOTO_SUFFIXES)


class FlatFiles(VOCFiles):
    """The annotations and photos of any folder: side by side, or in parallel folders such as images, annotations."""

    annotation_name, photo_name = "{}.xml", "{}.jpg or another photo"

    def __init__(self, folder: Path) -> None:
        self.annotations = NamedFiles(folder, (".xml",), place_of)
        self.photos = NamedFiles(folder, PHOTO_SUFFIXES, place_of)


def read_image_set(folder: Path, image_set: str, files: VOCFiles | None = None) -> list[str]:
    """Return the image ids that ``ImageSets/Main/<image_set>.txt`` lists, in its order, each once.

    A line is an id, blanks and all. The numbers of per-class files (``dog_trainval``: an id and 1, 0 or -1) and of
    other tasks' files (``Layout/trainval``: an id and the object's number) are no part of it: where every line ends
    with one, and no line is the name of a file as it stands.

    Args:
        folder: A ``VOC<year>`` folder.
        image_set: The file's name without ``.txt``; below ``ImageSets`` if it has a slash, else below its
            ``Main``.
        files: Of the folder, if they have been listed.

    Raises:
        MissingFileError: No such file; offers those that are there.
        DataError: The file is not text, or lists nothing.
    """
    sets = folder / "ImageSets"
    path = (sets if "/" in image_set else sets / "Main") / f"{image_set}.txt"
    if not path.is_file():
        raise MissingFileError(f"no image set {image_set!r}: {path} is missing{_offer(path)}")
    try:
        lines = decoded(path.read_bytes(), "utf-8").split("\n")
    except DataError as error:
        raise DataError(f"{path} is not a list of image ids: it {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    if not lines:
        raise DataError(f"{path} lists no image")
    return list(dict.fromkeys(_ids(lines, "/" in image_set, files or VOCFiles(folder))))


def _ids(lines: Sequence[str], other_task: bool, files: VOCFiles) -> list[str]:
    known = [line in files.annotations or line in files.photos for line in lines]
    number = re.compile(r"(.*\S)\s+\d+\s*" if other_task else r"(.*\S)\s+(-1|0|1)\s*")
    found = [number.fullmatch(line) for line in lines]
    if not any(known) and all(found):
        return [match[1].strip() for match in found if match]
    return [line if exact else line.strip() for line, exact in zip(lines, known, strict=True)]


def _offer(path: Path) -> str:
    there = sorted(file.stem for file in path.parent.glob("[!.]*.txt"))
    per_class = "_" in path.stem
    plain = [name for name in there if per_class or "_" not in name] or there
    near = did_you_mean(path.stem, plain)
    return near or (f"; there are {', '.join(plain[:8])}" if plain else f"; {path.parent} has no .txt file")
