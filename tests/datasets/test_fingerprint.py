"""An image's fingerprint is its own as long as neither its file nor its annotation changes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from transferkit.datasets import DEMO_CLASSES, VOCDataset, write_demo_devkit
from transferkit.datasets._photo import fingerprint


def test_a_pixel_or_a_box_or_a_mark_changes_it(tmp_path: Path) -> None:
    write_demo_devkit(tmp_path, num_train=3, num_test=1)

    def prints() -> list[str]:
        data = VOCDataset(tmp_path, image_set="trainval", class_names=DEMO_CLASSES)
        return [data.fingerprint(index) for index in range(3)]

    first = prints()
    assert len(set(first)) == 3 and prints() == first

    photo = next((tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("000002.*"))
    picture = Image.open(photo).convert("RGB")
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(photo)
    changed = prints()
    assert [one == other for one, other in zip(first, changed, strict=True)] == [True, False, True]

    annotation = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml"
    text = annotation.read_text()
    assert "<truncated>0</truncated>" in text
    annotation.write_text(text.replace("<truncated>0</truncated>", "<truncated>1</truncated>", 1))
    again = prints()
    assert [one == other for one, other in zip(changed, again, strict=True)] == [True, True, False]


def test_a_file_that_is_gone_has_one_too(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    gone = fingerprint(path, 1)
    path.write_bytes(b"back")
    assert fingerprint(path, 1) != gone
