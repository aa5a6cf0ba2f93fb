"""Damage photos, VOC annotations, COCO files and tar archives at random, and see that only the library's own errors come.

    python -m tests.benchmarks.damaged_data --count 20000

The tests run some hundreds. Bytes are flipped, cut, moved and spliced; in COCO files values become others as well.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import re
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.checkpoints.mutated_files import mutated
from transferkit.datasets import CocoDataset, VOCDataset
from transferkit.datasets._photo import photo_size, read_photo
from transferkit.datasets.download import extract_tar
from transferkit.errors import TransferKitError

SECONDS = 10
KINDS = ("photo", "voc", "coco", "tar")
_MODES = {
    "JPEG": "RGB",
    "PNG": "RGBA",
    "WEBP": "RGB",
    "GIF": "P",
    "BMP": "RGB",
    "TIFF": "RGB",
    "PPM": "RGB",
    "JPEG2000": "L",
}
_ODD = (
    None,
    True,
    "",
    "5",
    "../x.jpg",
    "/etc/hostname",
    "a\0b",
    "\ud800",
    "é" * 300,
    [],
    {},
    [[1, 2]],
    -1,
    0.5,
    1e300,
)
_ODD += (10**400, float("nan"), float("inf"), {"id": 1}, ["1", "2", "3", "4"], 2**61 - 1, "<!DOCTYPE", 0)
_ODD_TEXT = (
    "",
    "-1",
    "nan",
    "inf",
    "1e999",
    "1_0",
    "９",
    "x" * 9999,
    "&lt;b&gt;",
    "&#10;",
    "2",
    "0",
    "24.5",
    "<a>1</a>",
    "../x",
)
_XML = """<?xml version="1.0" encoding="{}"?><annotation><filename>a.jpg</filename><size><width>24</width>
<height>16</height></size><object><name>猫</name><truncated>0</truncated><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>20</xmax>
<ymax>16</ymax></bndbox></object><object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>
<xmax>9</xmax><ymax>9.5</ymax></bndbox></object></annotation>"""


def photos() -> list[bytes]:
    """Return one photo of each format, and one of several pages."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, mode in _MODES.items():
        file = io.BytesIO()
        picture.convert(mode).save(
            file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {})
        )
        found.append(file.getvalue())
    file = io.BytesIO()
    picture.save(file, "TIFF", save_all=True, append_images=[picture], compression="tiff_lzw")
    return [*found, file.getvalue()]


def coco() -> dict[str, Any]:
    """Return a small COCO file."""
    names = ("a.jpg", "b.jpg")
    things = [(1, 1, [1, 2, 9, 9]), (1, 2, [0, 0, 24, 16]), (2, 1, [3.5, 2, 8, 9])]
    return {
        "images": [{"id": n, "file_name": name, "width": 24, "height": 16} for n, name in enumerate(names, 1)],
        "categories": [{"id": 1, "name": "猫"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
            for n, (image, category, box) in enumerate(things)
        ],
    }


def tars() -> list[bytes]:
    """Return an archive in each of tar's formats."""
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for name in ("VOCdevkit/a.txt", "long/" + "n" * 90 + "/é.txt"):
                member = tarfile.TarInfo(name)
                member.size = 300
                tar.addfile(member, io.BytesIO(b"x" * 300))
        found.append(file.getvalue())
    return found


def with_odd_values(content: Any, dice: random.Random) -> Any:
    """Exchange some values of a JSON file."""
    content = json.loads(json.dumps(content))
    for _ in range(dice.choice((1, 1, 2, 4))):
        place: Any = content
        while isinstance(place, (dict, list)) and place:
            key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], (dict, list)) or not place[key] or dice.random() < 0.2:
                break
            place = place[key]
        if isinstance(place, (dict, list)) and place:
            place[key] = copy.deepcopy(dice.choice(_ODD))
    return content


class Damaged:
    """Damaged files of each kind, in a folder of their own.

    Args:
        folder: Empty.
        seed: Decides everything.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._dice = folder, random.Random(seed)
        self._photos, self._tars = photos(), tars()
        encodings = ("utf-8", "utf-16", "gb2312", "utf-8-sig")
        self._xmls = [_XML.format(name.removesuffix("-sig")).encode(name) for name in encodings]
        voc = folder / "VOC2007"
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (voc / part).mkdir(parents=True)
        (voc / "ImageSets/Main/trainval.txt").write_text("a\n")
        for path in (voc / "JPEGImages/a.jpg", folder / "a.jpg", folder / "b.jpg"):
            Image.new("RGB", (24, 16)).save(path)

    def read(self, kind: str) -> None:
        """Damage a file of a kind and read all that is in it."""
        path = self._folder / "file"
        path.write_bytes(self._content(kind))
        readers: dict[str, Callable[[Path], None]] = {
            "photo": self._photo,
            "voc": self._voc,
            "coco": self._coco,
        }
        readers.get(kind, self._tar)(path)

    def _content(self, kind: str) -> bytes:
        if kind == "coco" and self._dice.random() < 0.7:
            return json.dumps(with_odd_values(coco(), self._dice)).encode()
        if kind == "voc" and self._dice.random() < 0.7:
            chosen, other = (
                self._dice.choice(list(re.finditer("(?<=>)[^<>]+(?=<)", _XML))),
                self._dice.choice(_ODD_TEXT),
            )
            return (_XML[: chosen.start()] + other + _XML[chosen.end() :]).format("utf-8").encode()
        whole = {
            "photo": self._photos,
            "voc": self._xmls,
            "coco": [json.dumps(coco()).encode()],
            "tar": self._tars,
        }[kind]
        return mutated(self._dice.choice(whole), self._dice.choice(whole), self._dice)

    def _photo(self, path: Path) -> None:
        for upright in (False, True):
            pixels = read_photo(path, upright, float_range=(0, 1))
            assert pixels.shape == (3, *photo_size(path, upright))

    def _voc(self, path: Path) -> None:
        listed = (
            mutated(b"a\r\na b -1\n\xc3\xa9/c\n", b"\xff\xfea\0\n\0", self._dice)
            if self._dice.random() < 0.1
            else b"a\n"
        )
        (self._folder / "VOC2007/ImageSets/Main/trainval.txt").write_bytes(listed)
        path.replace(self._folder / "VOC2007/Annotations/a.xml")
        data = VOCDataset(
            self._folder, class_names=["猫", "dog"], bad_boxes=self._dice.choice(("error", "cut", "keep"))
        )
        assert set(data[0].classes.tolist()) <= {1, 2}
        data.presence()

    def _coco(self, path: Path) -> None:
        data = CocoDataset(path, self._folder, bad_boxes=self._dice.choice(("error", "cut", "skip", "keep")))
        for place in range(len(data)):
            assert data[place].image.shape[1:] == data.image_size(place)
        data.presence()

    def _tar(self, path: Path) -> None:
        around = set(self._folder.iterdir())
        try:
            extract_tar(path, self._folder / "out", max_bytes=1 << 20)
        finally:
            shutil.rmtree(self._folder / "out", ignore_errors=True)
        assert set(self._folder.iterdir()) == around


def outcome(damaged: Damaged, kind: str) -> str:
    """Read one damaged file and return what came of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata
            damaged.read(kind)
    except TransferKitError:
        return "refused"
    return "read"


def main() -> int:
    """Run many, and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed = 0
    for kind in KINDS:
        tally: Counter[str] = Counter()
        slowest = 0.0
        with tempfile.TemporaryDirectory() as folder:
            damaged = Damaged(Path(folder), options.seed)
            for number in range(options.count):
                begun = time.process_time()
                try:
                    tally[outcome(damaged, kind)] += 1
                except Exception as error:
                    tally["foreign"] += 1
                    print(f"{kind} #{number}: {error!r:.300}")
                slowest = max(slowest, time.process_time() - begun)
        failed += tally["foreign"] + (slowest > SECONDS)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(
            f"{kind}: {options.count:,} files: {dict(tally)}; slowest {slowest:.2f} s; peak so far {peak:,} MB",
            flush=True,
        )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
