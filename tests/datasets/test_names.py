"""Names as people have them: every photo keeps its own, no two share one, and none leads out of its folder."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transferkit.datasets import CocoDataset, ImageListDataset, VOCDataset, find_class_names
from transferkit.errors import DataError
from transferkit.finetune.photos import as_photos

NFC, NFD = (unicodedata.normalize(form, "été") for form in ("NFC", "NFD"))


def photo(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (shade, shade, shade)).save(path)
    return path


def voc(root: Path, ids: list[str], listed: str | bytes | None = None, suffix: str = ".png") -> Path:
    """Write photos whose shade is their place, and an image set."""
    for shade, name in enumerate(ids):
        photo(root / "JPEGImages" / f"{name}{suffix}", shade)
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<annotation/>")
    text = "\n".join(ids) if listed is None else listed
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main/t.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def shades(data: VOCDataset) -> list[int]:
    return [int(item.image[0, 0, 0]) for item in data]  # type: ignore[attr-defined]


IDS = [
    "IMG_1",
    "IMG_1 (2)",
    "IMG_1 2",
    " blank",
    "2019/IMG_1",
    "2019/a b/IMG_1",
    "a.b.c",
    "100%",
    NFC,
    "a\u3000b",
    "猫 1",
]


def test_every_photo_is_the_one_of_its_name(tmp_path: Path) -> None:
    data = VOCDataset(voc(tmp_path, IDS), image_set="t")
    assert data.ids == tuple(IDS) and shades(data) == list(range(len(IDS)))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_image_sets_of_other_editors(tmp_path: Path, encoding: str) -> None:
    data = VOCDataset(voc(tmp_path, IDS, "\r\n".join(IDS).encode(encoding)), image_set="t")
    assert data.ids == tuple(IDS) and shades(data) == list(range(len(IDS)))


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC)])
def test_a_name_is_found_in_the_other_unicode_form(tmp_path: Path, listed: str, there: str) -> None:
    data = VOCDataset(voc(tmp_path, [there], listed), image_set="t")
    assert data.ids == (listed,) and len(data[0].image) == 3
    with pytest.raises(DataError, match="are both"):
        VOCDataset(voc(tmp_path, [there], f"{NFC}\n{NFD}\n"), image_set="t")
    both = VOCDataset(voc(tmp_path / "both", [NFC, NFD]), image_set="t")
    assert shades(both) == [0, 1]


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".TIFF", ".gif"])
def test_photos_of_other_suffixes(tmp_path: Path, suffix: str) -> None:
    assert len(VOCDataset(voc(tmp_path, ["a"], suffix=suffix), image_set="t")) == 1


def test_of_two_photos_the_annotation_says_which(tmp_path: Path) -> None:
    root = voc(tmp_path, ["a"])
    photo(root / "JPEGImages/a.jpg", 200)
    assert shades(VOCDataset(root, image_set="t")) == [200]
    (root / "Annotations/a.xml").write_text("<annotation><filename>a.png</filename></annotation>")
    assert shades(VOCDataset(root, image_set="t")) == [0]


def test_files_that_macos_writes_beside_others_are_none(tmp_path: Path) -> None:
    root = voc(tmp_path, ["a"])
    xml = "<annotation><object><name>dog</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    (root / "Annotations/a.xml").write_text(xml)
    for path in (root / "Annotations/._a.xml", root / "JPEGImages/._a.png", root / "ImageSets/Main/._t.txt"):
        path.write_bytes(b"\0\x05\x16\x07")
    assert find_class_names(root) == ("background", "dog")
    assert as_photos(root / "JPEGImages").ids == ("a.png",)
    with pytest.raises(DataError, match="there are t$"):
        VOCDataset(root, image_set="zzz")


@pytest.mark.parametrize(
    "listed", ["../outside", "/etc/hostname", "2019/../../outside", "a\0b", "..", "x" * 5000]
)
def test_no_listed_name_leads_out(tmp_path: Path, listed: str) -> None:
    photo(tmp_path / "outside.png")
    (tmp_path / "outside.xml").write_text("<annotation/>")
    with pytest.raises(DataError, match="is listed, but"):
        VOCDataset(voc(tmp_path / "VOC2007", ["a"], listed), image_set="t")


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16", b""),
        ("gb2312", b""),
        ("gbk", b""),
        ("gb18030", b""),
        ("utf-16-le", b""),
        ("shift_jis", b""),
    ],
)
def test_class_names_are_read_in_the_encoding_that_is_declared(
    tmp_path: Path, encoding: str, mark: bytes
) -> None:
    xml = f'<?xml version="1.0" encoding="{encoding}"?><annotation><object><name>猫</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
    root = voc(tmp_path, ["a"])
    (root / "Annotations/a.xml").write_bytes(mark + xml.encode(encoding))
    assert find_class_names(root) == ("background", "猫")
    assert VOCDataset(root, image_set="t", class_names=["猫"])[0].classes.tolist() == [1]


@pytest.mark.parametrize(
    "encoding", ["latin-1", "utf-7", "unicode_escape", "no-such", "rot13", "utf-32", "idna"]
)
def test_other_encodings_are_read_or_refused(tmp_path: Path, encoding: str) -> None:
    xml = f'<?xml version="1.0" encoding="{encoding}"?><annotation><object><name>é</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
    root = voc(tmp_path, ["a"])
    (root / "Annotations/a.xml").write_bytes(xml.encode("latin-1"))
    if encoding == "latin-1":
        assert find_class_names(root)[1] == "é"
    else:
        with pytest.raises(DataError, match="refused"):
            find_class_names(root)


def test_a_class_in_two_unicode_forms_is_one(tmp_path: Path) -> None:
    root = voc(tmp_path, ["a", "b"])
    for name, form in (("a", NFC), ("b", NFD)):
        xml = f"<annotation><object><name>{form}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        (root / f"Annotations/{name}.xml").write_text(xml)
    assert len(find_class_names(root)) == 2
    data = VOCDataset(root, image_set="t", class_names=[NFC])
    assert [item.classes.tolist() for item in data] == [[1], [1]]  # type: ignore[attr-defined]


def test_files_of_one_name_have_ids_that_differ(tmp_path: Path) -> None:
    paths = [photo(tmp_path / name) for name in ("cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg")]
    assert ImageListDataset(paths).ids == ("cats/1", "dogs/1", "dogs/2")
    assert ImageListDataset(paths[1:]).ids == ("1", "2")
    paths.append(photo(tmp_path / "dogs/1.png"))
    assert ImageListDataset(paths).ids == ("cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg", "dogs/1.png")
    mixed = ImageListDataset([photo(tmp_path / "1.jpg"), np.zeros((4, 4), np.uint8), *paths, paths[0]]).ids
    assert len(set(mixed)) == len(mixed)
    with pytest.raises(DataError, match="ids must be different, these are not: '1'"):
        ImageListDataset(paths[:2], ids=["1", "1"])


IMAGE = {"id": 1, "file_name": "a.png", "width": 32, "height": 24}
OTHER = {"id": 2, "file_name": "b.png", "width": 32, "height": 24}
CAT, DOG = {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}


def coco(
    folder: Path,
    images: Any = (IMAGE, OTHER),
    categories: Any = (CAT, DOG),
    things: Any = (),
    encoding: str = "utf-8",
) -> CocoDataset:
    for name in ("a.png", "b.png"):
        photo(folder / "images" / name)
    content = {"images": images, "categories": categories, "annotations": things}
    (folder / "c.json").write_bytes(json.dumps(content).encode(encoding))
    return CocoDataset(folder / "c.json", folder / "images")


@pytest.mark.parametrize(
    ("images", "categories", "message"),
    [
        ([IMAGE, {**OTHER, "id": 1}], [CAT], "image id '1' is given more than once"),
        ([IMAGE, {**OTHER, "id": 1.0}], [CAT], "image id '1' is given more than once"),
        ([IMAGE, {**OTHER, "id": "1"}], [CAT], "image id '1' is given more than once"),
        ([IMAGE], [CAT, {**DOG, "id": 1}], "category id '1' is given more than once"),
        ([IMAGE], [CAT, {**DOG, "id": "2"}], "category ids are numbers and text"),
        ([IMAGE], [CAT, {**DOG, "name": "cat"}], "category name 'cat' is given more than once"),
        ([IMAGE], [{**CAT, "name": NFC}, {**DOG, "name": NFD}], "is given more than once"),
        ([IMAGE], [CAT, {**DOG, "name": "background"}], "not 'background', which is class 0"),
        *(
            ([IMAGE], [{**CAT, "name": odd}], "category name .* must be text")
            for odd in (None, "", [], {}, True, "a\0", "\ud800")
        ),
        *(([{**IMAGE, "id": odd}], [CAT], "image id .* must be text") for odd in (None, "", [], {}, True, 0.5)),
        *(
            ([{**IMAGE, "file_name": odd}], [CAT], "leads out of the folder|no image")
            for odd in (
                "../c.json",
                "/etc/hostname",
                "x/../../c.json",
                "..\\c.json",
                "C:\\a.png",
                None,
                5,
                "a\0",
                "x" * 9000,
                "\ud800",
                "",
            )
        ),
    ],
)
def test_a_coco_file_says_each_thing_once_and_stays_in_its_folder(
    tmp_path: Path, images: Any, categories: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        coco(tmp_path, images, categories)


def test_a_key_that_is_twice_in_a_json_object_is_refused(tmp_path: Path) -> None:
    coco(tmp_path)
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"images"', '"images": [], "images"'))
    with pytest.raises(DataError, match="'images' is said twice"):
        CocoDataset(tmp_path / "c.json", tmp_path / "images")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="is not JSON"):
        CocoDataset(tmp_path / "c.json", tmp_path / "images")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_coco_files_of_other_editors(tmp_path: Path, encoding: str) -> None:
    assert coco(tmp_path, categories=[{"id": 1, "name": "猫"}], encoding=encoding).class_names[1] == "猫"


def test_a_coco_photo_is_found_in_a_subfolder_and_the_other_unicode_form(tmp_path: Path) -> None:
    photo(tmp_path / "images/x" / f"{NFD}.png")
    data = coco(tmp_path, [{**IMAGE, "file_name": f"x/{NFC}.png"}, {**OTHER, "file_name": f"x\\{NFC}.png"}])
    assert data[0].image.shape == data[1].image.shape == (3, 24, 32)


def test_ids_of_any_kind_find_their_objects(tmp_path: Path) -> None:
    """Integers that collide in a dict of Python are looked up in linear time as well."""
    box = [1, 1, 9, 9]
    for first, second in ((1, 2), ("1", "b"), (1.0, 2), (2**61 - 1, 0), (-1, 10**30)):
        images = [{**IMAGE, "id": first}, {**OTHER, "id": second}]
        things = [
            {"image_id": second, "category_id": 2, "bbox": box},
            {"image_id": first, "category_id": 1.0, "bbox": box},
        ]
        assert [coco(tmp_path, images, things=things)[place].classes.tolist() for place in (0, 1)] == [[1], [2]]
    assert len(coco(tmp_path, things=[{"image_id": "1", "category_id": "1", "bbox": box}])[0].classes) == 1
    with pytest.raises(DataError, match="on image '01', which is not listed"):
        coco(tmp_path, things=[{"image_id": "01", "category_id": 1, "bbox": box}])
    with pytest.raises(DataError, match=r"on image \[\], which is not listed"):
        coco(tmp_path, things=[{"image_id": [], "category_id": 1, "bbox": box}])
