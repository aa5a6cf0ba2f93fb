"""Write a VOCdevkit's photos as people have them: flat XML, YOLO, a COCO export with faults, and tags in a table.

    python -m tests.benchmarks.photo_folders ../shared/voc photo_folders

Makes the four folders, photos as hard links where the disk allows, and checks each. The tests write made-up photos.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from transferkit.datasets import check, open_photos

Sets = Mapping[str, Any]  # image set to data set, as VOCDataset


def put(photo: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(photo.resolve(), place)
    except OSError:
        shutil.copy(photo, place)


def write_flat_xml(sets: Sets, folder: Path) -> Path:
    """As labelImg does: XML beside its photo, which it calls by a path of another machine; blanks in names."""
    for image_set, data in sets.items():
        for index, name in enumerate(data.ids):
            photo, place = data.photo_file(index)[0], folder / image_set / f"IMG {name}"
            height, width = data.image_size(index)
            put(photo, place.with_suffix(photo.suffix))
            rows = [
                f"<object><name>{escape(data.class_names[k])}</name><difficult>{int(hard)}</difficult><bndbox>"
                f"<xmin>{box[0] + 1:g}</xmin><ymin>{box[1] + 1:g}</ymin><xmax>{box[2]:g}</xmax><ymax>{box[3]:g}</ymax>"
                "</bndbox></object>"
                for box, k, hard in zip(*(column.tolist() for column in data.objects(index)[:3]), strict=True)
            ]
            place.with_suffix(".xml").write_text(
                f"<annotation><folder>x</folder><filename>{place.name}{photo.suffix}</filename>"
                f"<path>C:\\Users\\x\\{place.name}{photo.suffix}</path><size><width>{width}</width>"
                f"<height>{height}</height><depth>3</depth></size>{''.join(rows)}</annotation>"
            )
    return folder


def write_yolo(sets: Sets, folder: Path) -> Path:
    """As Roboflow does, with its paths that lead one folder too high."""
    roboflow = {"train": "train", "val": "valid", "test": "test"}
    lines = [f"{image_set}: ../{roboflow[image_set]}/images" for image_set in sets]
    for image_set, data in sets.items():
        home = folder / roboflow[image_set]
        names = list(data.class_names[1:])
        for index, name in enumerate(data.ids):
            photo = data.photo_file(index)[0]
            height, width = data.image_size(index)
            put(photo, home / "images" / f"{name}{photo.suffix}")
            boxes, classes = (column.tolist() for column in data.objects(index)[:2])
            rows = [
                f"{k - 1} {(x + right) / 2 / width:.6f} {(y + bottom) / 2 / height:.6f} "
                f"{(right - x) / width:.6f} {(bottom - y) / height:.6f}"
                for (x, y, right, bottom), k in zip(boxes, classes, strict=True)
            ]
            (home / "labels").mkdir(exist_ok=True)
            (home / "labels" / f"{name}.txt").write_text("\n".join(rows) + "\n" if rows else "")
    text = "\n".join(
        [*lines, "", f"nc: {len(names)}", f"names: {names!r}", "", "roboflow:", "  version: 1", ""]
    )
    (folder / "data.yaml").write_text(text)
    return folder


def write_coco(sets: Sets, folder: Path, faults: int = 1) -> Path:
    """As several programs do at once: a mark of the encoding, text numbers, no sizes, a group, gaps; then mistakes.

    Each of ``faults`` rounds adds a box that reaches out of its photo, an empty box, a photo that is not there and a
    file that is no photo.
    """
    for image_set, data in sets.items():
        images, things = [], []
        for index, name in enumerate(data.ids):
            photo = data.photo_file(index)[0]
            put(photo, folder / "images" / image_set / f"{name}{photo.suffix}")
            images.append({"id": str(index + 1), "file_name": f"{image_set}/{name}{photo.suffix}"})
            for (x, y, right, bottom), k in zip(*(c.tolist() for c in data.objects(index)[:2]), strict=True):
                bbox = [f"{side:.2f}" for side in (x, y, right - x, bottom - y)]
                things.append({"id": len(things), "image_id": index + 1, "category_id": 10 * k, "bbox": bbox})
        for number in range(faults):
            height, width = data.image_size(number)
            for bbox in ([5, 5, width + 40, height], [8, 8, 0, 0]):
                things.append({"id": len(things), "image_id": number + 1, "category_id": 10, "bbox": bbox})
            images.append({"id": f"{len(images) + 1}", "file_name": f"{image_set}/missing {number}.jpg"})
            (folder / "images" / image_set / f"damaged {number}.jpg").write_bytes(b"no photo")
            images.append({"id": f"{len(images) + 1}", "file_name": f"{image_set}/damaged {number}.jpg"})
        group = [{"id": 0, "name": "things", "supercategory": "none"}]
        named = [
            {"id": 10 * k, "name": name, "supercategory": "things"} for k, name in enumerate(data.class_names)
        ]
        content = {"images": images, "categories": [*group, *named[1:]], "annotations": things}
        (folder / "annotations").mkdir(exist_ok=True)
        file = folder / "annotations" / f"instances_{image_set}.json"
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    return folder


def write_tags(sets: Sets, folder: Path) -> Path:
    """Photos in one folder, a table of their classes for each set, and every fiftieth photo listed in none."""
    for image_set, data in sets.items():
        lines = ["file,labels"]
        for index, name in enumerate(data.ids):
            photo = data.photo_file(index)[0]
            put(photo, folder / "photos" / image_set / f"{name}{photo.suffix}")
            tags = [data.class_names[k] for k in sorted(set(data.objects(index)[1].tolist()))]
            if index % 50 != 49:
                lines.append(f"{name}{photo.suffix},{';'.join(tags)}")
        (folder / f"{image_set}.csv").write_text("\n".join(lines) + "\n")
    return folder


KINDS: dict[str, Callable[[Sets, Path], Path]] = {
    "xml": write_flat_xml,
    "yolo": write_yolo,
    "coco": write_coco,
    "table": write_tags,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="a VOCdevkit, or any folder that open_photos reads")
    parser.add_argument("folder", type=Path, help="gets the four folders")
    options = parser.parse_args()
    sets = open_photos(options.source).datasets
    for name, write in KINDS.items():
        folder = write(sets, options.folder / name)
        start = time.perf_counter()
        print(check(folder), f"{time.perf_counter() - start:.1f} s", "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
