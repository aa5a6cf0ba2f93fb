"""Data of one's own: lists, COCO files, torchvision-style targets; every kind of image; photos taken sideways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from transferkit.datasets import CocoDataset, ImageListDataset, TargetDictDataset
from transferkit.datasets._photo import as_pixels, exif_orientation, turn_boxes
from transferkit.errors import ArgumentError, DataError, MissingFileError
from transferkit.sampler import MultiscaleSampler

HEIGHT, WIDTH = 40, 60
BOX = (5, 8, 25, 18)


def marked(box: tuple[int, int, int, int] = BOX) -> Image.Image:
    """A black picture whose box is white."""
    picture = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(picture)


def save_turned(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked().save(path, exif=exif)


def white_box(pixels: torch.Tensor) -> list[float]:
    rows, columns = (pixels[0] > 127).nonzero(as_tuple=True)
    return [float(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_photo(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "photo.png"
    save_turned(path, orientation)
    with Image.open(path) as photo:
        assert exif_orientation(photo) == orientation
        shown = np.array(ImageOps.exif_transpose(photo))
    data = ImageListDataset([path], [[BOX]], [[1]])
    item = data[0]
    np.testing.assert_array_equal(item.image.permute(1, 2, 0).numpy(), shown)
    assert item.boxes[0].tolist() == white_box(item.image)
    assert data.image_size(0) == shown.shape[:2]
    as_shown = ImageListDataset([path], [[white_box(item.image)]], [[1]], boxes_on="shown")
    assert torch.equal(as_shown[0].boxes, item.boxes)


def test_an_orientation_that_means_nothing_is_none(tmp_path: Path) -> None:
    save_turned(tmp_path / "photo.png", 9)
    with Image.open(tmp_path / "photo.png") as photo:
        assert exif_orientation(photo) == 1


def test_turning_back_and_forth_changes_nothing() -> None:
    boxes = torch.tensor([[1.0, 2.0, 13.0, 20.0]])
    back = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    for orientation, opposite in back.items():
        turned = turn_boxes(boxes, (HEIGHT, WIDTH), orientation)
        size = (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)
        assert torch.equal(turn_boxes(turned, size, opposite), boxes)


def rgb_picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda picture: picture, 0),
        (lambda picture: torch.from_numpy(picture).permute(2, 0, 1), 0),
        (lambda picture: torch.from_numpy(picture).permute(2, 0, 1) / 255, 0),
        (lambda picture: (picture / 255).astype(np.float32), 0),
        (lambda picture: Image.fromarray(picture), 0),
        (lambda picture: Image.fromarray(np.dstack([picture, np.full((HEIGHT, WIDTH), 255, np.uint8)])), 0),
        (lambda picture: Image.fromarray(255 - picture).convert("CMYK"), None),
        (lambda picture: Image.fromarray(picture).convert("P"), None),
    ],
    ids=["array", "tensor", "float tensor", "float array", "PIL", "alpha", "CMYK", "palette"],
)
def test_color_images_of_any_kind(make: Callable[[np.ndarray], Any], tolerance: int | None) -> None:
    picture = rgb_picture()
    image = make(picture)
    pixels = as_pixels(image, float_range=(0, 1))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, HEIGHT, WIDTH)
    expected = np.array(image.convert("RGB")) if tolerance is None else picture
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda gray: gray,
        lambda gray: gray[:, :, None],
        lambda gray: torch.from_numpy(gray),
        lambda gray: torch.from_numpy(gray)[None],
        lambda gray: Image.fromarray(gray),
    ],
)
def test_gray_images_have_three_equal_channels(make: Callable[[np.ndarray], Any]) -> None:
    gray = rgb_picture()[:, :, 0]
    pixels = as_pixels(make(gray))
    assert all(torch.equal(channel, torch.from_numpy(gray)) for channel in pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.bool])
@pytest.mark.parametrize("channels", [3, 4, 13])
def test_what_is_no_picture_keeps_channels_type_and_values(dtype: torch.dtype, channels: int) -> None:
    scene = torch.randint(0, 2 if dtype == torch.bool else 120, (channels, 4, 5)).to(dtype)
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    given = [scene, *([scene.permute(1, 2, 0).numpy()] if channels < 13 else [])]
    for image in given:
        found = TargetDictDataset([(image, target)])[0].image
        assert found.dtype == dtype and torch.equal(found, scene)


def test_a_fourth_band_of_floats_changes_no_other() -> None:
    scene = torch.full((4, 2, 2), 0.5)
    scene[3] = 0
    assert as_pixels(scene, (0, 1))[:, 0, 0].tolist() == [128, 128, 128, 0]


def test_what_is_transparent_is_white() -> None:
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert (as_pixels(clear) == 255).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((4, 4), np.int64),
        torch.zeros(0, 4, 4),
    ],
)
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(DataError, match="an image array must be"):
        as_pixels(image)


def test_floats_are_what_they_are_said_to_be_or_refused() -> None:
    """An image of 0..1 whose brightest pixel is 1 may as well be one of 0..255 that is black."""
    dark, full = np.array([[0.0, 0.5, 1.0]]), np.array([[0.0, 128.0, 255.0]])
    assert as_pixels(dark, float_range=(0, 1))[0].tolist() == [[0, 128, 255]]
    assert as_pixels(dark, float_range=(0, 255))[0].tolist() == [[0, 0, 1]]
    assert as_pixels(full, float_range=(0, 255))[0].tolist() == [[0, 128, 255]]
    for image in (dark, full, torch.zeros(3, 2, 2), Image.fromarray(dark.astype(np.float32))):
        with pytest.raises(
            DataError, match=r"say float_range=\(0, 1\) if 1 is white, or float_range=\(0, 255\) if"
        ):
            as_pixels(image)
    for image in (full, np.array([[np.nan]]), np.array([[-0.1]])):
        with pytest.raises(DataError, match=r"must lie in float_range=\(0, 1\)"):
            as_pixels(image, float_range=(0, 1))
    with pytest.raises(DataError, match="low below high"):
        as_pixels(dark, float_range=(1, 0))
    data = ImageListDataset([dark, full.astype(np.uint8)], float_range=(0, 1))
    assert torch.equal(data[0].image[0], torch.tensor([[0, 128, 255]], dtype=torch.uint8))
    with pytest.raises(DataError, match="float_range"):
        _ = ImageListDataset([dark])[0]


def test_lists_are_checked_all_at_once(tmp_path: Path) -> None:
    for name in "ac":
        marked().save(tmp_path / f"{name}.png")
    with pytest.raises(DataError) as caught:
        ImageListDataset(
            [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"],
            [[[1, 2, 3]], [[0, 0, 1, 1]], [[0, 0, 1, 1]]],
            [[1], [0], [1, 2]],
        )
    message = str(caught.value)
    for part in (
        "image 0 (a): box [1, 2, 3] is not four numbers",
        "image 1 (b): classes must be 1 or more",
        "no file",
        "image 2 (c): classes",
    ):
        assert part in message
    with pytest.raises(ArgumentError, match="boxes must be a list of 1"):
        ImageListDataset([marked()], [[], []], [[], []])
    with pytest.raises(ArgumentError, match="class_names must be more than 2"):
        ImageListDataset([marked()], [[BOX]], [[2]], class_names=["background", "dog"])


def test_a_list_without_objects_is_all_background() -> None:
    data = ImageListDataset([marked(), rgb_picture()])
    assert data.class_names == ("background",)
    assert not data.presence().present.any()
    sampler = MultiscaleSampler(data, patches_per_image=8, batch_size=8, patch_size=16, mode="test")
    assert all((batch.labels == 0).all() for batch in sampler)


def coco(tmp_path: Path, bad_boxes: Any = "error", **changes: Any) -> CocoDataset:
    save_turned(tmp_path / "upright.png", 1)
    save_turned(tmp_path / "sideways.png", 6)
    x, y, right, bottom = BOX
    bbox = [x, y, right - x, bottom - y]
    content = {
        "images": [
            {"id": 7, "file_name": "upright.png", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "sideways.png", "height": HEIGHT, "width": WIDTH},
            {"id": 4, "file_name": "sideways.png", "height": WIDTH, "width": HEIGHT},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": bbox},
            {"id": 2, "image_id": 7, "category_id": 17, "bbox": [50, 30, 20, 20], "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 17, "bbox": bbox},
        ],
        **changes,
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return CocoDataset(tmp_path / "instances.json", tmp_path, bad_boxes=bad_boxes)


def test_coco(tmp_path: Path) -> None:
    data = coco(tmp_path, bad_boxes="cut")
    assert data.class_names == ("background", "cat", "dog")
    assert data.ids == ("7", "3", "4")
    first = data[0]
    assert first.boxes.tolist() == [[5, 8, 25, 18], [50, 30, 60, 40]]
    assert first.classes.tolist() == [2, 1]
    assert first.difficult.tolist() == [False, True]
    turned = data[1]
    assert turned.image.shape == (3, WIDTH, HEIGHT)
    assert turned.boxes[0].tolist() == white_box(turned.image)
    assert [data.image_size(i) for i in range(3)] == [tuple(data[i].image.shape[1:]) for i in range(3)]
    assert data.presence().present.tolist() == [[False, True, True], [False, True, False], [False] * 3]
    assert data.presence().difficult_only[0].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "it has no list of categories"),
        ({"categories": [{"id": 1}]}, "1 of its 1 categories lack one of id, name"),
        ({"annotations": [{"id": 5, "image_id": 99, "category_id": 17, "bbox": [0, 0, 1, 1]}]}, "on image 99"),
        ({"annotations": [{"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "category 1"),
        ({"annotations": [{"id": 5, "image_id": 7, "category_id": 17, "bbox": [0, 0, 1]}]}, "is not four"),
        ({"images": [{"id": 7, "file_name": "none.png", "height": 1, "width": 1}]}, "no image none.png"),
    ],
)
def test_a_coco_file_that_is_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        coco(tmp_path, **changes)


def test_coco_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no COCO file"):
        CocoDataset(tmp_path / "none.json", tmp_path)
    with pytest.raises(MissingFileError, match="no folder"):
        CocoDataset(tmp_path / "none.json", tmp_path / "none")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        CocoDataset(tmp_path / "bad.json", tmp_path)
    with pytest.raises(DataError, match=r"is recorded as 9 x 9 and is 60 x 40"):
        coco(tmp_path, images=[{"id": 7, "file_name": "upright.png", "height": 9, "width": 9}], annotations=[])


def test_torchvision_style_targets() -> None:
    target = {
        "boxes": torch.tensor([BOX, (0, 0, 9, 9)]),
        "labels": torch.tensor([2, 1]),
        "iscrowd": torch.tensor([0, 1]),
        "image_id": torch.tensor([42]),
    }
    data = TargetDictDataset(
        [(torch.from_numpy(rgb_picture()).permute(2, 0, 1) / 255, target), (marked(), target)],
        float_range=(0, 1),
    )
    item = data[0]
    assert item.boxes.tolist() == [list(map(float, BOX)), [0, 0, 9, 9]]
    assert item.classes.tolist() == [2, 1]
    assert item.difficult.tolist() == [False, True]
    assert item.id == "42"
    assert len(list(MultiscaleSampler(data, patches_per_image=8, batch_size=8, patch_size=16))) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (marked(), "must be .image, target dict., got Image"),
        ((marked(), [{"bbox": BOX}]), r"must be .image, target dict., got \['Image', 'list'\]"),
        (
            (marked(), {"boxes": SimpleNamespace(format=SimpleNamespace(name="XYWH")), "labels": [1]}),
            "the boxes of item 0 must be XYXY",
        ),
        ((marked(), {"labels": []}), "has no boxes, only"),
        ((marked(), {"boxes": [BOX], "labels": [1, 2]}), "has 1 boxes, but 2 labels"),
    ],
)
def test_targets_that_are_wrong(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TargetDictDataset([item])[0]
