"""Finding folders, lists and photos as the official kits and other tools write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from transferkit.datasets import VOCDataset
from transferkit.datasets.voc_files import VOCFiles, read_image_set
from transferkit.errors import DataError, MissingFileError


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("000001\n000002\n", ["000001", "000002"]),
        ("000001\r\n000002\r\n\r\n", ["000001", "000002"]),
        ("\ufeff000001\n", ["000001"]),
        ("000001 -1\n000002  1\n000003  0", ["000001", "000002", "000003"]),
        ("IMG_1\nIMG_1 (2)\n a cat .b 3\n", ["IMG_1", "IMG_1 (2)", "a cat .b 3"]),
        ("IMG_1 2\nIMG_1 3\n", ["IMG_1 2", "IMG_1 3"]),
        ("IMG_1 (2) -1\nIMG_1  1\n", ["IMG_1 (2)", "IMG_1"]),
    ],
    ids=["plain", "windows", "byte order mark", "per class", "blanks", "copies", "per class with blanks"],
)
def test_image_sets_as_tools_write_them(tmp_path: Path, text: str, ids: list[str]) -> None:
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "some.txt").write_bytes(text.encode())
    assert read_image_set(tmp_path, "some") == ids


def test_sets_of_other_tasks_and_the_offer_of_names(tmp_path: Path) -> None:
    for name in ("Layout/val", "Main/val", "Main/train", "Main/dog_train"):
        path = tmp_path / "ImageSets" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.parent.name} 1\n{path.parent.name} 1\n")
    (tmp_path / "ImageSets/Layout/val.txt").write_text("2008_000001 1\n2008_000001 2\n")
    assert read_image_set(tmp_path, "Layout/val") == ["2008_000001"]
    assert read_image_set(tmp_path, "val") == ["Main"]
    with pytest.raises(MissingFileError, match="did you mean 'train'"):
        read_image_set(tmp_path, "trian")
    with pytest.raises(MissingFileError, match="there are train, val$"):
        read_image_set(tmp_path, "42")
    with pytest.raises(MissingFileError, match=r"Action has no \.txt file"):
        read_image_set(tmp_path, "Action/val")
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"val\.txt is not a list of image ids"):
        read_image_set(tmp_path, "val")


def test_photos_of_other_kinds_serve_where_there_is_no_jpg(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    for name in ("a.png", "a.jpg", "b.JPEG", "c.png", "d.txt"):
        (tmp_path / "JPEGImages" / name).touch()
    photos = VOCFiles(tmp_path).photos
    assert [photos[name] for name in "abcd"] == [["a.jpg", "a.png"], ["b.JPEG"], ["c.png"], []]


def test_a_photo_is_turned_if_its_annotation_was_made_on_it_turned(
    tmp_path: Path, write_voc: Callable[..., Path]
) -> None:
    folder = write_voc(tmp_path, {"a": [("dog", (1, 1, 20, 30))]}, size=(32, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(folder / "JPEGImages" / "a.jpg", exif=exif)
    data = VOCDataset(tmp_path)
    assert data.image_size(0) == tuple(data[0].image.shape[1:]) == (32, 24)
    annotation = folder / "Annotations" / "a.xml"
    annotation.write_text(
        annotation.read_text().replace("24<", "#<").replace("32<", "24<").replace("#<", "32<")
    )
    with pytest.raises(DataError, match="box 1 1 20 30 of 'dog' reaches out of the image, 32 x 24"):
        VOCDataset(tmp_path)
