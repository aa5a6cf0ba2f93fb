"""What is written as VOC is read back the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.annotated import AnnotatedImage
from transferkit.datasets import VOCDataset, write_voc_images
from transferkit.errors import ArgumentError, DataError, OutputError


@st.composite
def items(draw: Any, name: str) -> AnnotatedImage:
    height, width = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    count = draw(st.integers(0, 4))
    starts = [(draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))) for _ in range(count)]
    boxes = [(x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))) for x, y in starts]
    flags = torch.tensor(
        draw(st.lists(st.booleans(), min_size=2 * count, max_size=2 * count)), dtype=torch.bool
    )
    return AnnotatedImage(
        image=torch.full((3, height, width), draw(st.integers(0, 255)), dtype=torch.uint8),
        boxes=torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        classes=torch.tensor([draw(st.integers(1, 3)) for _ in range(count)], dtype=torch.int64),
        difficult=flags[:count],
        truncated=flags[count:],
        id=name,
    )


@given(st.tuples(items("one"), items("two")))
@settings(deadline=None, max_examples=40)
def test_round_trip(written: tuple[AnnotatedImage, ...]) -> None:
    names = ("background", "a & b", "c<d>", "é")
    with tempfile.TemporaryDirectory() as folder:
        write_voc_images(Path(folder), "trainval", written, names)
        data = VOCDataset(folder, class_names=names)
        assert data.ids == ("one", "two")
        for item, read in zip(written, data, strict=True):
            for field in ("boxes", "classes", "difficult", "truncated"):
                ours, theirs = getattr(item, field), getattr(read, field)
                assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
            assert (item.image.int() - read.image.int()).abs().max() <= 1


def item(name: Any = "a", shade: int = 0, **changes: Any) -> AnnotatedImage:
    return AnnotatedImage(
        **{
            "image": torch.full((3, 8, 8), shade, dtype=torch.uint8),
            "boxes": torch.tensor([[1.0, 1.0, 5.0, 5.0]], dtype=torch.float64),
            "classes": torch.tensor([1]),
            "difficult": torch.tensor([False]),
            "truncated": torch.tensor([False]),
            "id": name,
            **changes,
        }
    )


NAMES = ("background", "cat")


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("images", "class_names", "image_set", "message"),
    [
        ([item("b"), item("b")], NAMES, "test", "image id 'b' is taken"),
        ([item("b"), item("a")], NAMES, "test", "image id 'a' is taken"),
        ([item("b")], NAMES, "trainval", "trainval.txt is there already"),
        ([item("b")], ("background", "cat"), "../out", "image_set must be a name that a file can have"),
        (
            [item("b")],
            ("background", "../../cat"),
            "test",
            "class_names must be names that a file can have, or rename",
        ),
        ([item("b")], ("background", "a\0"), "test", "class_names must be"),
        ([item("b")], ("background", "cat", "cat_x"), "test", None),
        ([item("b"), item("c", classes=torch.tensor([2]))], NAMES, "test", "classes must be below 2"),
        ([item("b"), item("c", boxes=torch.tensor([[9.0, 1, 5, 5]]))], NAMES, "test", "must be finite"),
        *(
            ([item("b"), item(odd)], NAMES, "test", "is no name for a file")
            for odd in ("../b", "/b", "x/../../b", "", ".", "a\n", "x//y", "\ud800", "._b", "x\\y")
        ),
    ],
)
def test_nothing_is_written_over_nor_left_half_written(
    tmp_path: Path,
    images: list[AnnotatedImage],
    class_names: tuple[str, ...],
    image_set: str,
    message: str | None,
) -> None:
    folder = tmp_path / "devkit" / "VOC2007"
    write_voc_images(folder, "trainval", [item("a", 100)], NAMES)
    before = content(tmp_path)
    if message is None:
        assert write_voc_images(folder, image_set, images, class_names) == ("b",)
        return
    with pytest.raises((DataError, ArgumentError), match=message):
        write_voc_images(folder, image_set, images, class_names)
    assert content(tmp_path) == before


def test_images_and_the_files_of_classes_are_renamed_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "devkit" / "VOC2007"
    names = ("background", "cat/dog", "$x$ <b>")
    ids = ["1", "1", "1 (2)", "../1", "x/1", "", "IMG 1", "IMG"]
    written = write_voc_images(
        folder, "t", [item(name, 20 * n) for n, name in enumerate(ids)], names, rename=True
    )
    assert len(set(written)) == len(ids) and [written[0], written[2], written[4]] == ["1", "1 (2)", "x/1"]
    assert {path.name for path in tmp_path.iterdir()} == {"devkit"} and {
        p.name for p in folder.parent.iterdir()
    } == {"VOC2007"}
    data = VOCDataset(folder, image_set="t", class_names=names)
    assert data.ids == written
    assert [int(one.image[0, 0, 0]) for one in data] == pytest.approx([20 * n for n in range(len(ids))], abs=1)  # type: ignore[attr-defined]
    more = write_voc_images(folder, "u", [item("1", 250)], names, rename=True)
    assert not set(more) & set(written)
    per_class = sorted(path.name for path in (folder / "ImageSets/Main").glob("*_t.txt"))
    assert per_class == ["$x$ <b>_t.txt", "cat%2Fdog_t.txt"]
    assert VOCDataset(folder, image_set="$x$ <b>_t", class_names=names).ids == written


def test_sides_are_written_to_the_last_digit(tmp_path: Path) -> None:
    box = torch.tensor([[0.123456789012, 1.5, 1234567.25, 7654321.125]], dtype=torch.float64)
    write_voc_images(tmp_path, "t", [item(boxes=box)], NAMES)
    read = VOCDataset(tmp_path, image_set="t", class_names=NAMES, bad_boxes="keep")[0]
    assert torch.allclose(read.boxes, box, rtol=1e-15, atol=1e-15)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write .*: File name too long"):
        write_voc_images(tmp_path / "voc", "t", [item("x" * 300)], NAMES)
    bands = torch.zeros(4, 8, 8, dtype=torch.uint8)  # which a JPEG would take for inks
    with pytest.raises(DataError, match=r"image must be a \(3, H, W\) uint8 tensor, got \(4, 8, 8\)"):
        write_voc_images(tmp_path / "voc", "t", [item(image=bands)], NAMES)
    assert not content(tmp_path)
