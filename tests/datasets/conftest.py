"""What the data set tests share: a VOCdevkit of a few tiny images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

_OBJECT = """<object><name>{name}</name>{flags}<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>\
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


@pytest.fixture
def write_voc() -> Callable[..., Path]:
    """The function that writes one."""
    return _write_voc


def _write_voc(
    root: Path,
    images: Mapping[str, Sequence[Any]],
    year: str = "2007",
    image_set: str = "trainval",
    size: tuple[int, int] = (24, 32),
) -> Path:
    """Write images given as ``{id: [(class, box[, {tag: text}]), ...]}`` and return the VOC folder."""
    folder = root / "VOCdevkit" / f"VOC{year}"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    height, width = size
    for number, (image_id, objects) in enumerate(images.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg")
        body = "".join(
            _OBJECT.format(
                name=name, box=box, flags="".join(f"<{t}>{v}</{t}>" for t, v in dict(*flags).items())
            )
            for name, box, *flags in objects
        )
        (folder / "Annotations" / f"{image_id}.xml").write_text(
            f"<annotation><filename>{image_id}.jpg</filename><size><width>{width}</width><height>{height}</height>"
            f"<depth>3</depth></size>{body}</annotation>"
        )
    (folder / "ImageSets" / "Main" / f"{image_set}.txt").write_text("".join(f"{name}\n" for name in images))
    return folder
