"""Folders of photos as people have them: opened in one line, all mistakes at once, and no photo on both sides."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from tests.benchmarks.photo_folders import KINDS, write_coco, write_yolo
from tests.checkpoints.mutated_files import mutated
from transferkit.cli import main
from transferkit.datasets import (
    ClassFolderDataset,
    CocoDataset,
    FolderDataset,
    ImageListDataset,
    TableDataset,
    YoloDataset,
    check,
    open_photos,
    split,
)
from transferkit.errors import ArgumentError, DataError, MissingFileError, TransferKitError
from transferkit.finetune.photos import class_names_of, truth_of

WIDTH, HEIGHT = 32, 24
Write = Callable[..., Path]


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    return path


def xml(path: Path, name: str = "cat", box: tuple[float, ...] = (1, 1, 9, 9), filename: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    path.write_text(
        f"<annotation><filename>{filename}</filename><path>/gone/{filename}</path>"
        f"<object><name>{name}</name><bndbox>{sides}</bndbox></object></annotation>"
    )


@pytest.fixture
def sets(tmp_path: Path, write_voc: Write) -> dict[str, Any]:
    """A VOCdevkit's image sets, whose photos differ in nothing but being noise of two seeds."""
    root = tmp_path / "voc"
    write_voc(root, {f"{i:03}": [("dog" if i % 3 else "cat", (2, 3, 20, 20))] for i in range(12)})
    folder = write_voc(
        root, {"100": [("cat", (5, 5, 32, 24)), ("dog", (1, 1, 8, 8))], "101": []}, image_set="test"
    )
    for number, name in enumerate(("100", "101")):
        photo(folder / "JPEGImages" / f"{name}.jpg", seed=1000 + number)
    return open_photos(root).datasets


def rows_of(data: Any) -> list[tuple[list[str], list[list[float]]]]:
    """Classes and boxes of each photo, rounded, whatever the photos are called."""
    names = data.class_names
    return sorted(
        (
            sorted(names[k] for k in truth.nonzero().flatten()),
            [[round(side, 2) for side in box] for box in boxes],
        )
        for truth, boxes in (
            (data.presence().present[index], data.objects(index)[0].tolist()) for index in range(len(data))
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_any_kind_holds_what_was_written_in_one_line(tmp_path: Path, sets: Any, kind: str) -> None:
    options = {"bad_boxes": "skip", "bad_photos": "skip"} if kind == "coco" else {}
    opened = open_photos(KINDS[kind](sets, tmp_path / kind), **options)
    assert opened.format == kind and list(opened.datasets) == ["train", "test"]
    for name, data in opened.datasets.items():
        assert data.class_names == ("background", "cat", "dog")
        boxed = kind != "table"
        expected = [(names, boxes if boxed else []) for names, boxes in rows_of(sets[name])]
        assert rows_of(data) == sorted(expected)
        assert data[0].image.shape == (3, HEIGHT, WIDTH)
        assert (data[0].image_labels is None) == boxed


def test_check_tells_all_mistakes_at_once_and_an_option_that_helps(
    tmp_path: Path, sets: Any, capsys: Any
) -> None:
    folder = write_coco(sets, tmp_path / "coco", faults=2)
    found = check(folder)
    assert len(found.problems) == 2 * 2 * 4
    for words in ("missing 1.jpg", "reaches out", "is empty", "damaged 0.jpg is not a readable image"):
        assert sum(words in problem for problem in found.problems) >= 2, words
    with pytest.raises(DataError, match=r"(?s)train/missing 0.*bad_photos=.*test/missing 0"):
        open_photos(folder)
    assert found.options and rows_of(open_photos(folder, **found.options).train) != []
    assert main(["check", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == list(found.problems)
    assert found.sets["test"] == {"photos": 2, "boxes": 4, "labels_alone": 0, "classes": {"cat": 2, "dog": 1}}


def test_check_of_what_is_fine_and_of_what_is_nothing(tmp_path: Path, sets: Any, capsys: Any) -> None:
    assert main(["check", str(write_yolo(sets, tmp_path / "yolo"))]) == 0
    assert "class 'cat' has 4 photos" in capsys.readouterr().out
    photo(tmp_path / "none" / "a.jpg")
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "put photos into folders by class" in capsys.readouterr().err


def test_check_finds_copies_near_copies_and_damaged_photos(tmp_path: Path) -> None:
    for number in range(4):
        photo(tmp_path / f"train/cat/{number}.png", seed=number)
    (tmp_path / "test/cat").mkdir(parents=True)
    with Image.open(tmp_path / "train/cat/0.png") as image:
        image.save(tmp_path / "test/cat/pixels.bmp")
        changed = np.array(image)
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(tmp_path / "test/cat/near.png")
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "test/cat/bytes.png")
    shutil.copy(tmp_path / "train/cat/2.png", tmp_path / "train/cat/again.png")
    data = photo(tmp_path / "test/cat/cut.png", seed=9).read_bytes()
    (tmp_path / "test/cat/cut.png").write_bytes(data[: len(data) // 2])
    found = check(tmp_path)
    problems = "\n".join(found.problems)
    assert "train 0 and test pixels are one photo, in two image sets" in problems
    assert "train 1 and test bytes are one photo, in two image sets" in problems
    assert "cut.png is damaged" in problems
    assert len(found.problems) == 3
    assert any("train 2 and train again are one photo" in note for note in found.notes)
    assert found.near == (("train 0", "test near"),)


@pytest.mark.parametrize("seed", range(4))
def test_a_split_keeps_shares_and_parts_no_copies(tmp_path: Path, seed: int) -> None:
    for number in range(40):
        photo(tmp_path / f"{'cat' if number < 10 else 'dog'}/{number}.png", seed=number % 30)
    with Image.open(tmp_path / "dog/20.png") as image:
        image.save(tmp_path / "dog/20 again.bmp")
    data = ClassFolderDataset(tmp_path)
    train, held = split(data, fraction=0.25, seed=seed)
    assert sorted([*train.indices, *held.indices]) == list(range(41))
    shown = [{part[i].image.numpy().tobytes() for i in range(len(part))} for part in (train, held)]
    assert not shown[0] & shown[1] and len(shown[0] | shown[1]) == 30
    assert 2 <= truth_of(held, 3).present[:, 1].sum() <= 7  # its ten photos, and their copies among dogs
    assert split(data, fraction=0.25, seed=seed)[1].indices == held.indices


# Image labels


def test_images_with_labels_alone_and_with_boxes_are_one_data_set() -> None:
    pixels = torch.zeros(3, 20, 30, dtype=torch.uint8)
    names = ["background", "cat", "dog"]
    boxed = ImageListDataset([pixels] * 2, [[[1, 1, 9, 9]], []], [[2], []], class_names=names)
    tagged = ImageListDataset([pixels] * 3, image_labels=[[2, 1, 2], [], [1]], class_names=names)
    mixed = ConcatDataset([boxed, tagged])
    assert mixed[2].image_labels.tolist() == [1, 2] and mixed[0].image_labels is None
    found = truth_of(mixed, 3)
    assert found.boxed is not None and found.boxed.tolist() == [True, True, False, False, False]
    assert found.present[:, 1:].int().tolist() == [[0, 1], [0, 0], [1, 1], [0, 0], [1, 0]]
    assert class_names_of(mixed) == tuple(names)
    both = ImageListDataset([pixels] * 2, [[[1, 1, 9, 9]], []], [[2], []], image_labels=[None, [1]])
    assert both.presence().boxed.tolist() == [True, False]
    for wrong in ([[2], []], [[0], None], [["cat"], None]):
        with pytest.raises(DataError, match="image_labels must be"):
            ImageListDataset([pixels] * 2, [[[1, 1, 9, 9]], []], [[2], []], image_labels=wrong)


def test_a_data_set_is_asked_once_what_all_its_photos_show(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, presence = [], ImageListDataset.presence
    monkeypatch.setattr(ImageListDataset, "presence", lambda data: asked.append(data) or presence(data))
    pixels = torch.zeros(3, 20, 30, dtype=torch.uint8)
    data = [ImageListDataset([pixels] * 5, image_labels=[[1]] * 5) for _ in range(2)]
    assert truth_of(ConcatDataset(data), 2).present[:, 1].all()
    assert len(asked) == 2


def test_unreadable_files_are_left_out_where_that_is_asked(tmp_path: Path) -> None:
    good = photo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no photo")
    files = [tmp_path / "b.png", good, tmp_path / "c.png"]
    data = ImageListDataset(files, image_labels=[[1], [2], [3]], bad_photos="skip")
    assert data.ids == ("a",) and data[0].image_labels.tolist() == [2] and len(data.left_out) == 2
    with pytest.raises(DataError, match=r'(?s)2 problems.*b\.png.*c\.png.*bad_photos="skip"'):
        ImageListDataset(files, bad_photos="error")


TABLES = {
    "names": "file,labels\na.png,cat;dog\nb b.png,\nc.png,dog\n",
    "commas": 'file,labels\na.png,"cat, dog"\nb b.png,\nc.png,dog\n',
    "rows": "a.png|cat\na.png|dog\nb b.png|\nc.png|dog\n".replace("|", ","),
    "semicolons": "\ufefflabel;image\r\ncat|dog;x/a.png\r\n;b b.png\r\ndog;c\r\n",
    "flags": "filename, cat, dog\na.png, 1, 1\nb b.png, 0, 0\nc.png, 0, 1\n",
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b b", "c", "d")):
        photo(tmp_path / f"photos/{name}.png", seed=number)
    return tmp_path


@pytest.mark.parametrize("form", TABLES)
def test_tables_of_any_form_say_the_same(photos: Path, form: str) -> None:
    (photos / "tags.csv").write_bytes(TABLES[form].encode())
    data = open_photos(photos).train
    assert data.class_names == ("background", "cat", "dog")
    assert data.presence().present[:, 1:].int().tolist() == [[1, 1], [0, 0], [0, 1]]
    assert str(data) == ("TableDataset(3 images, 2 classes; 1 show none of them; 1 more photos are not used)")


def test_rows_are_a_table(photos: Path) -> None:
    rows = [{"id": 1, "file": "a.png", "tag": "cat"}, {"id": 2, "file": "c.png", "tag": float("nan")}]
    data = TableDataset(rows, photos / "photos")
    assert data.presence().present[:, 1].tolist() == [True, False]
    assert len(TableDataset(rows, photos, class_names=["dog"], skip_other_classes=True)) == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "file,labels\nx.png,cat\na.png,cat\nd.png\n",
            {},
            r"(?s)row 'x\.png,cat': no image x\.png.*row 'd\.png': 1 cells under 2",
        ),
        ("file,color,size\na.png,red,2\n", {}, r"label_columns=\["),
        ("one,two\nx,y\n", {}, "say file_column"),
        ("file,labels\na.png,cta\n", {"class_names": ["cat"]}, "did you mean 'cat'"),
        ('file,labels\na.png,"cat\n', {}, "is no table"),
    ],
)
def test_what_is_no_table_is_refused(photos: Path, text: str, options: Any, message: str) -> None:
    (photos / "tags.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        TableDataset(photos / "tags.csv", **options)


def test_folders_by_class(tmp_path: Path) -> None:
    for number, name in enumerate(("train/1", "bus/2", "bus/old/3", "background/4")):
        photo(tmp_path / f"{name}.jpg", seed=number)
    photo(tmp_path / ".checkpoints/5.jpg")
    data = open_photos(tmp_path).train
    assert data.class_names == ("background", "bus", "train")  # a class called so is no image set
    assert data.presence().present[:, 1:].int().tolist() == [[0, 0], [1, 0], [1, 0], [0, 1]]
    assert data.num_empty == 1


# Photos with XML


def test_xml_finds_its_photo_by_place_and_name(tmp_path: Path) -> None:
    photo(tmp_path / "images/sub/a b.PNG")
    xml(tmp_path / "annotations/sub/a b.xml", "dog", filename="other.jpg")
    photo(tmp_path / "images/other/a b.bmp")
    photo(tmp_path / "c.webp")
    xml(tmp_path / "c.xml")
    data = FolderDataset(tmp_path)
    assert [data.photo_file(i)[0].name for i in range(2)] == ["c.webp", "a b.PNG"]
    assert data.class_names == ("background", "cat", "dog") and data.unlisted == ["images/other/a b.bmp"]
    photo(tmp_path / "photos/sub/a b.png")
    xml(tmp_path / "z gone.xml", box=(0, 0, 99, 99))
    with pytest.raises(
        DataError, match=r"(?s)may be any of images/sub/a b.PNG, photos/sub.*gone\.jpg or another"
    ):
        FolderDataset(tmp_path)
    assert len(FolderDataset(tmp_path, bad_photos="skip").left_out) == 2


# YOLO


def yolo(folder: Path, labels: str, description: str = "train: images\nnames: [cat, dog]\n") -> Path:
    photo(folder / "images/a.png")
    photo(folder / "images/none.png")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels/a.txt").write_text(labels)
    (folder / "data.yaml").write_text(description)
    return folder


def test_boxes_polygons_and_photos_without_labels(tmp_path: Path) -> None:
    data = YoloDataset(yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n1 0.25 0 1 0.5 0.5 1\n"))
    assert data.objects(0)[0].tolist() == [[8, 6, 24, 18], [8, 0, 32, 24]]
    assert data.objects(0)[1].tolist() == [1, 2] and data.without_labels == 1
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"give class_names=\["):
        YoloDataset(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert YoloDataset(tmp_path).class_names == data.class_names


def test_an_image_set_that_is_named_and_not_there_is_none(tmp_path: Path) -> None:
    text = "train: ../images\nval: ../gone/images\nnames: [cat]\n"
    assert list(open_photos(yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n", text)).datasets) == ["train"]
    with pytest.raises(MissingFileError, match=r"no folder or list \.\./gone/images"):
        YoloDataset(tmp_path, "val")
    (tmp_path / "data.yaml").write_text("val: images\nnames: [cat]\n")
    with pytest.raises(MissingFileError, match="has no image set 'train', only val"):
        print(open_photos(tmp_path).train)


def test_a_list_of_photos_with_paths_of_another_machine(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n", "path: /gone\ntrain: train.txt\nnames: [cat]\n")
    (tmp_path / "train.txt").write_text("data/images/a.png\nC:\\x\\images\\none.png\n")
    assert YoloDataset(tmp_path).ids == ("a", "none")


def test_boxes_turn_with_a_photo_as_it_is_shown(tmp_path: Path) -> None:
    yolo(tmp_path, "0 0.5 0.5 1 0.5\n")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/a.png", exif=exif)
    assert YoloDataset(tmp_path).objects(0)[0].tolist() == [[0, 8, HEIGHT, 24]]


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 0.5",
        "0 a 0.5 0.5 0.5",
        "0 10 10 20 20",
        "2 .5 .5 .1 .1",
        "0.5 .5 .5 .1 .1",
        "0 .5 .5 .1 .1 .9",
    ],
)
def test_what_is_no_label_is_refused_by_file_and_line(tmp_path: Path, line: str) -> None:
    folder = yolo(tmp_path, f"0 0.5 0.5 0.5 0.5\n{line}\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2: "):
        YoloDataset(folder)
    assert YoloDataset(folder, bad_photos="skip").ids == ("none",)


@pytest.mark.parametrize(
    "names",
    [
        "[cat, 'a, b', \"it's\"]",
        "\n- cat\n- 'a, b'  # x\n- it's",
        "\n  0: cat\n  1: a, b\n  2: it's",
        "{0: cat, 1: 'a, b',\n  2: it's}",
    ],
)
def test_names_in_every_form_of_yaml(tmp_path: Path, names: str) -> None:
    text = f"# about\ntrain: images  # all\nnc: 3\nnames: {names}\nroboflow:\n  names: x\ndownload: |\n  names = 3\n"
    assert YoloDataset(yolo(tmp_path, "", text)).class_names[1:] == ("cat", "a, b", "it's")


@pytest.mark.parametrize(
    "names", ["&x [a]", "!!set [a]", "[a, [b]]", "\n  - a\n  b: 1", "['a', \"b]", "*x", "{1: a}"]
)
def test_other_yaml_is_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(DataError, match="YAML that is not read here|does not name its classes"):
        YoloDataset(yolo(tmp_path, "", f"train: images\nnames: {names}\n"))


# COCO, and what fits several formats


def test_coco_files_that_programs_write(tmp_path: Path) -> None:
    for number, name in enumerate(("train/a.png", "val/a.png")):
        photo(tmp_path / "images" / name, seed=number)
    content = {
        "images": [{"id": 1, "file_name": "images\\a.png", "width": str(WIDTH), "height": str(HEIGHT)}],
        "categories": [{"id": "7", "name": "cat"}, {"id": "31", "name": "dog"}],
        "annotations": [{"id": 1, "image_id": "1", "category_id": 31, "bbox": ["1", "2", 3.5, "4"]}],
    }
    (tmp_path / "annotations").mkdir()
    for name in ("train", "val"):
        (tmp_path / f"annotations/instances_{name}2017.json").write_text(
            json.dumps(content), encoding="utf-8-sig"
        )
    opened = open_photos(tmp_path)
    for name, data in opened.datasets.items():
        assert data.photo_file(0)[0].parent.name == name
        assert data.objects(0)[0].tolist() == [[1, 2, 4.5, 6]] and data.objects(0)[1].tolist() == [2]
    shutil.copy(tmp_path / "annotations/instances_val2017.json", tmp_path / "some.json")
    with pytest.raises(DataError, match=r"image images\\a\.png may be images/train/a\.png, images/val/a\.png"):
        CocoDataset(tmp_path / "some.json")


def test_a_folder_of_several_formats_is_refused_until_one_is_named(photos: Path) -> None:
    (photos / "tags.csv").write_text(TABLES["names"])
    xml(photos / "photos/d.xml")
    with pytest.raises(DataError, match=r"(?s)several ways.*'table': tags\.csv.*'xml': photos/d\.xml"):
        open_photos(photos)
    assert len(open_photos(photos, "table").train) == 3
    assert len(open_photos(photos, "xml").train) == 1
    with pytest.raises(MissingFileError, match="nothing of format 'yolo'"):
        open_photos(photos, "yolo")
    with pytest.raises(ArgumentError, match="format must be one of"):
        open_photos(photos, "pdf")
    with pytest.raises(MissingFileError, match="no file or folder"):
        open_photos(photos / "nowhere")


def test_damaged_descriptions_are_read_or_refused(tmp_path: Path) -> None:
    text = "path: .\ntrain: images\nval: ['images']\nnames:\n  0: cat\n  1: 'dog'\n"
    files = [yolo(tmp_path / "yolo", "0 0.5 0.5 0.5 0.5\n1 0.25 0 1 0.5 0.5 1\n", text) / "data.yaml"]
    files.append(tmp_path / "yolo/labels/a.txt")
    for number, name in enumerate(("a", "b b")):
        photo(tmp_path / f"table/{name}.png", seed=number)
    files.append(tmp_path / "table/tags.csv")
    files[2].write_text(TABLES["commas"].rpartition("c.png")[0])
    dice, outcomes = random.Random(13), set()
    for number in range(180):
        file, format = files[number % 3], "table" if number % 3 == 2 else "yolo"
        content = file.read_bytes()
        file.write_bytes(mutated(content, content, dice))
        try:
            outcomes.add((format, len(open_photos(tmp_path / format, format).datasets) > 0))
        except TransferKitError:
            outcomes.add((format, False))
        file.write_bytes(content)
    assert len(outcomes) == 4
