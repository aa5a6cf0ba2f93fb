"""One rule for boxes, whatever data set they come from, and one way to say which frame they are in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.datasets import CocoDataset, ImageListDataset, TargetDictDataset, VOCDataset
from transferkit.errors import ArgumentError, DataError

HEIGHT, WIDTH = 40, 60
GOOD = (5.0, 8.0, 25.0, 18.0)
NAMES = ("background", "dog")
Boxes = list[tuple[Any, ...]]


def save(path: Path, orientation: int = 1, box: tuple[int, ...] = (5, 8, 25, 18)) -> Path:
    """A black photo whose box is white, as it is stored."""
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, exif=exif)
    return path


def voc(
    folder: Path, boxes: Boxes, orientation: int = 1, size: Any = (WIDTH, HEIGHT), **options: Any
) -> VOCDataset:
    root = folder / "VOC2007"
    save(root / "JPEGImages/a.png", orientation)
    tags = ("xmin", "ymin", "xmax", "ymax")
    body = "".join(
        f"<object><name>dog</name><bndbox>{''.join(f'<{t}>{v}</{t}>' for t, v in zip(tags, box, strict=True))}"
        "</bndbox></object>"
        for box in boxes
    )
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    for name, text in {
        "Annotations/a.xml": f"<annotation>{said}{body}</annotation>",
        "ImageSets/Main/t.txt": "a",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return VOCDataset(root, image_set="t", class_names=NAMES, subtract_one="nothing", **options)


def coco(
    folder: Path, boxes: Boxes, orientation: int = 1, size: Any = (WIDTH, HEIGHT), **options: Any
) -> CocoDataset:
    save(folder / "a.png", orientation)
    width, height = size or (0, 0)
    wide = [
        [x, y, right - x, bottom - y] if all(isinstance(v, (int, float)) for v in box) else list(box)
        for box in boxes
        for x, y, right, bottom in [box]
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(wide)],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return CocoDataset(folder / "a.json", folder, **options)


def listed(
    folder: Path, boxes: Boxes, orientation: int = 1, size: Any = None, **options: Any
) -> ImageListDataset:
    path = save(folder / "a.png", orientation)
    return ImageListDataset([path], [boxes], [[1] * len(boxes)], class_names=NAMES, **options)


def targets(
    folder: Path, boxes: Boxes, orientation: int = 1, size: Any = None, **options: Any
) -> TargetDictDataset:
    with Image.open(save(folder / "a.png", orientation)) as image:
        image.load()
    data = TargetDictDataset([(image, {"boxes": boxes, "labels": [1] * len(boxes)})], NAMES, **options)
    data.verify()
    return data


MAKERS = pytest.mark.parametrize("make", [voc, coco, listed, targets])
SIZED = pytest.mark.parametrize("make", [voc, coco])
Make = Callable[..., Any]
# Each with what is left of it when it is cut, and whether it may be kept.
BAD = {
    (5, 8, 90, 18): ((5, 8, 60, 18), True),
    (-20, -9, 25, 18): ((0, 0, 25, 18), True),
    (70, 50, 90, 60): (None, True),
    (5, 8, 5, 18): (None, True),
    (5, 8, 25, 8): (None, True),
    (0.1, 0.2, 0.6, 0.7): (None, True),
    (25, 8, 5, 18): (None, False),
    (math.nan, 8, 25, 18): (None, False),
    (5, 8, math.inf, 18): (None, False),
    ("five", 8, 25, 18): (None, False),
}


@MAKERS
def test_good_boxes_are_as_they_were_given(tmp_path: Path, make: Make) -> None:
    boxes = [GOOD, (0, 0, WIDTH, HEIGHT), (3.25, 0.5, 59.75, 39.5), (0, 0, 1, 1)]
    for option in ("error", "cut", "skip", "keep"):
        data = make(tmp_path, boxes, bad_boxes=option)
        assert data[0].boxes.tolist() == [list(map(float, box)) for box in boxes]
        assert not any(data.bad_box_counts.values())


@MAKERS
@pytest.mark.parametrize("box", BAD, ids=str)
def test_a_bad_box_is_refused_cut_left_out_or_kept(tmp_path: Path, make: Make, box: tuple[Any, ...]) -> None:
    cut, keepable = BAD[box]
    with pytest.raises(DataError, match="bad_boxes=") as caught:
        make(tmp_path, [GOOD, box])
    assert ('"keep"' in str(caught.value)) == keepable
    for option, left in (("cut", cut), ("skip", None), ("keep", box)):
        if option == "keep" and not keepable:
            with pytest.raises(DataError, match='"skip" leaves'):
                make(tmp_path, [GOOD, box], bad_boxes="keep")
            continue
        data = make(tmp_path, [box, GOOD], bad_boxes=option)
        wanted = [left] * (left is not None) + [GOOD]
        assert torch.allclose(data[0].boxes, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12)
        assert len(data[0].classes) == len(data[0].difficult) == len(data[0].truncated) == len(wanted)
        done = {"keep": "kept", "skip": "skipped"}.get(option, "cut" if len(wanted) == 2 else "skipped")
        assert data.bad_box_counts == {"cut": 0, "skipped": 0, "kept": 0, "sizes": 0, done: 1}


@MAKERS
def test_all_bad_boxes_are_in_one_error(tmp_path: Path, make: Make) -> None:
    with pytest.raises(DataError) as caught:
        make(tmp_path, list(BAD))
    for what in ("reaches out", "is empty", "is inverted", "is not four numbers", "smaller than a pixel"):
        assert what in str(caught.value)
    assert str(caught.value).count("\n  - ") == len(BAD)


@MAKERS
def test_a_pixel_beyond_the_border_is_cut_and_counted_but_for_keep(tmp_path: Path, make: Make) -> None:
    data = make(tmp_path, [(-1, -0.5, 61, 40.25)])
    assert data[0].boxes.tolist() == [[0, 0, 60, 40]] and data.bad_box_counts["cut"] == 1
    assert make(tmp_path, [(-1, -0.5, 61, 40.25)], bad_boxes="keep")[0].boxes.tolist() == [
        [-1, -0.5, 61, 40.25]
    ]


@SIZED
def test_a_photo_of_another_size_than_recorded(tmp_path: Path, make: Make) -> None:
    with pytest.raises(DataError, match=r'(?s)600 x 400.*60 x 40.*"cut" and "keep" take its boxes as pixels'):
        make(tmp_path, [GOOD], size=(600, 400))
    for option, left in (("cut", [list(GOOD)]), ("keep", [list(GOOD)]), ("skip", [])):
        data = make(tmp_path, [GOOD], size=(600, 400), bad_boxes=option)
        assert data[0].boxes.tolist() == left
        assert data.bad_box_counts["sizes"] == 1 and data.bad_box_counts["skipped"] == (not left)
    with pytest.raises(DataError):
        make(tmp_path, [GOOD], size=(HEIGHT, WIDTH))


def white_box(pixels: torch.Tensor) -> list[float]:
    rows, columns = (pixels[0] > 127).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@MAKERS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_lie_on_their_objects_in_the_frame_that_is_said(
    tmp_path: Path, make: Make, orientation: int
) -> None:
    """Whether pixels are turned or not, the box is on what is white."""
    stored = make(tmp_path, [GOOD], orientation, boxes_on="stored")[0]
    assert stored.boxes[0].tolist() == white_box(stored.image)
    on_shown = white_box(
        ImageListDataset([tmp_path / "a.png" if make is not voc else tmp_path / "VOC2007/JPEGImages/a.png"])[
            0
        ].image
    )
    data = make(tmp_path, [tuple(on_shown)], orientation, boxes_on="shown")
    assert data[0].boxes[0].tolist() == white_box(data[0].image) == on_shown
    assert data[0].image.shape[1:] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    if hasattr(data, "image_size"):
        assert data.image_size(0) == tuple(data[0].image.shape[1:])


@SIZED
def test_the_frame_is_that_of_the_recorded_size(tmp_path: Path, make: Make) -> None:
    stored = make(tmp_path, [GOOD], 6)[0]
    assert stored.boxes[0].tolist() == white_box(stored.image)
    shown = make(tmp_path, [(22, 5, 32, 25)], 6, size=(HEIGHT, WIDTH))[0]
    assert shown.boxes[0].tolist() == white_box(shown.image)


def test_a_turned_photo_without_a_size_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say boxes_on"):
        coco(tmp_path, [GOOD], 6, size=None)
    assert coco(tmp_path, [GOOD], 1, size=None)[0].boxes.tolist() == [list(GOOD)]
    item = coco(tmp_path, [GOOD], 6, size=None, boxes_on="stored")[0]
    assert item.boxes[0].tolist() == white_box(item.image)


@MAKERS
@pytest.mark.parametrize("options", [{"bad_boxes": "clip"}, {"boxes_on": "screen"}])
def test_options_are_checked(tmp_path: Path, make: Make, options: dict[str, str]) -> None:
    with pytest.raises(ArgumentError, match="must be one of"):
        make(tmp_path, [GOOD], **options)


@pytest.mark.parametrize("value", ["yes", "01", None, 2, 0.5, [], math.nan])
def test_a_flag_that_is_none_is_refused_or_its_object_left_out(tmp_path: Path, value: Any) -> None:
    def data(**options: Any) -> CocoDataset:
        coco(tmp_path, [GOOD])
        content = json.loads((tmp_path / "a.json").read_text())
        content["annotations"][0]["iscrowd"] = value
        (tmp_path / "a.json").write_text(json.dumps(content))
        return CocoDataset(tmp_path / "a.json", tmp_path, **options)

    for option in ("error", "keep"):
        with pytest.raises(DataError, match=r'(?s)iscrowd must be 0 or 1.*"skip"'):
            data(bad_boxes=option)
    assert not data(bad_boxes="skip").presence().present.any()


@pytest.mark.parametrize(
    "classes", [[1.9], [math.nan], ["1"], [True], [2**70], [1.9999999999], torch.tensor([1.5])]
)
def test_classes_are_whole_numbers(tmp_path: Path, classes: Any) -> None:
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    with pytest.raises(DataError, match="must be whole numbers"):
        ImageListDataset([image], [[GOOD]], [classes])
    with pytest.raises(DataError, match="must be whole numbers"):
        TargetDictDataset([(image, {"boxes": [GOOD], "labels": classes})])[0]


def test_labels_have_names() -> None:
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    with pytest.raises(DataError, match="label 7, but there are class_names for 1 to 1"):
        TargetDictDataset([(image, {"boxes": [GOOD], "labels": [7]})], NAMES)[0]
    with pytest.raises(DataError, match="item 0 has label 7"):
        TargetDictDataset([(image, {"boxes": [GOOD], "labels": [7]})], NAMES).verify()


@pytest.mark.parametrize(
    "names",
    [["cat", "dog"], ["__background__", "cat"], "cat", ["background", "cat", "cat "], ["background", ""]],
)
def test_class_names_say_which_class_is_the_first(names: Any) -> None:
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    with pytest.raises(ArgumentError, match="class_names must be"):
        ImageListDataset([image], [[GOOD]], [[1]], class_names=names)
    with pytest.raises(ArgumentError, match="class_names must be"):
        TargetDictDataset([], names)
