"""Write images and their objects the way Pascal VOC lays them out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from transferkit.sampler.item import AnnotatedImage


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
