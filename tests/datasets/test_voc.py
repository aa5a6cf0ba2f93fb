"""VOCDataset on small folders made here, and on real photos where they are at hand."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transferkit.datasets import (
    DEMO_CLASSES,
    VOC_CLASSES,
    VOCDataset,
    find_class_names,
    open_photos,
    voc_files,
    write_demo_devkit,
)
from transferkit.errors import ArgumentError, DataError, MissingFileError


def test_root_may_be_any_of_three_folders(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    folder = write_voc(tmp_path, {"a": [("dog", (1, 1, 10, 10))]})
    assert folder == tmp_path / "VOCdevkit" / "VOC2007"
    for root in (tmp_path, folder.parent, folder, str(folder)):
        assert VOCDataset(root).folder == folder


def test_an_item_is_what_the_files_say(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    write_voc(tmp_path, {"a": [("dog", (1, 2, 30, 20)), ("cat", (5, 5, 9, 9), {"difficult": "1"})], "b": []})
    data = VOCDataset(tmp_path)
    item = data[0]
    assert item.image.dtype == torch.uint8 and item.image.shape == (3, 24, 32)
    assert item.boxes.dtype == torch.float64
    assert item.boxes.tolist() == [[0, 1, 30, 20], [4, 4, 9, 9]]
    assert [VOC_CLASSES[i] for i in item.classes] == ["dog", "cat"]
    assert item.difficult.tolist() == [False, True]
    assert item.truncated.tolist() == [False, False]
    assert item.id == "a" and data.ids == ("a", "b") and data.image_size(0) == (24, 32)
    assert data[1].boxes.shape == (0, 4) and data[1].classes.dtype == torch.int64


def test_neons_boxes_lose_one_on_every_side(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    write_voc(tmp_path, {"a": [("dog", (1, 2, 30, 20))]})
    assert VOCDataset(tmp_path, subtract_one="all")[0].boxes.tolist() == [[0, 1, 29, 19]]


def test_boxes_written_from_zero_are_cut_at_the_border(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    write_voc(tmp_path, {"a": [("dog", (0, 0, 32, 24))]})
    assert VOCDataset(tmp_path)[0].boxes.tolist() == [[0, 0, 32, 24]]
    assert VOCDataset(tmp_path, subtract_one="nothing")[0].boxes.tolist() == [[0, 0, 32, 24]]


def test_presence_tells_difficult_objects_apart(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    hard = {"difficult": "1"}
    box = (1, 1, 9, 9)
    write_voc(tmp_path, {"a": [("dog", box, hard), ("dog", box), ("cat", box, hard)], "b": []})
    presence = VOCDataset(tmp_path).presence()
    dog, cat = VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")
    assert presence.present.nonzero().tolist() == [[0, cat], [0, dog]]
    assert presence.difficult_only.nonzero().tolist() == [[0, cat]]


def test_own_classes_from_a_list_or_from_the_annotations(
    tmp_path: Path, write_voc: Callable[..., Path]
) -> None:
    write_voc(tmp_path, {"a": [("wheel", (1, 1, 9, 9))], "b": [("axle", (1, 1, 9, 9))]})
    assert find_class_names(tmp_path) == ("background", "axle", "wheel")
    data = VOCDataset(tmp_path, class_names=find_class_names(tmp_path), max_images=1)
    assert len(data) == 1 and data[0].classes.tolist() == [2]
    only = VOCDataset(tmp_path, class_names=["axle"], skip_other_classes=True)
    assert only.class_names == ("background", "axle")
    assert [item.classes.tolist() for item in (only[0], only[1])] == [[], [1]]


def test_all_problems_come_at_once_and_name_their_files(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    box = (1, 1, 9, 9)
    folder = write_voc(
        tmp_path,
        {
            "outside": [("dog", (1, 1, 90, 9))],
            "inverted": [("dog", (9, 1, 1, 9))],
            "empty": [("dog", (0, 1, 0, 9))],
            "strange": [("hosre", box)],
            "size": [("dog", box)],
            "photoless": [("dog", box)],
            "xmlless": [("dog", box)],
            "junk": [("dog", box)],
            "broken": [("dog", box)],
        },
    )
    size = folder / "Annotations" / "size.xml"
    size.write_text(size.read_text().replace("<width>32", "<width>24").replace("<height>24", "<height>32"))
    (folder / "JPEGImages" / "photoless.jpg").unlink()
    (folder / "Annotations" / "xmlless.xml").unlink()
    (folder / "Annotations" / "junk.xml").write_text("<annotation><object>")
    (folder / "JPEGImages" / "broken.jpg").write_bytes(b"not a photo")
    with pytest.raises(DataError) as caught:
        VOCDataset(tmp_path)
    message = str(caught.value)
    assert "9 problems" in message
    for text in (
        "Annotations/outside.xml: box 1 1 90 9 of 'dog' reaches out of the image, 32 x 24",
        "Annotations/inverted.xml: box 9 1 1 9 of 'dog' is inverted",
        "Annotations/empty.xml: box 0 1 0 9 of 'dog' is empty",
        "class 'hosre' in Annotations/strange.xml is not one of 20 classes; did you mean 'horse'",
        "size.xml says that its image is 24 x 32 (width x height), but JPEGImages/size.jpg is 32 x 24",
        "JPEGImages/photoless.jpg is not there",
        "Annotations/xmlless.xml is not there",
        "junk.xml is not well-formed XML",
        "broken.jpg is not a readable image",
    ):
        assert text in message


def test_a_long_list_of_problems_is_cut(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    write_voc(tmp_path, {f"{i:03}": [("dog", (9, 1, 1, 9))] for i in range(30)})
    with pytest.raises(DataError, match=r"30 problems(.|\n)*\n  \.\.\. and 20 more\nbad_boxes="):
        VOCDataset(tmp_path)


def test_missing_folders_and_sets(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    with pytest.raises(MissingFileError, match="no VOC data for 2007"):
        VOCDataset(tmp_path / "nowhere")
    folder = write_voc(tmp_path, {"a": []})
    with pytest.raises(MissingFileError, match="no VOC data for 2012"):
        VOCDataset(tmp_path, "2012")
    with pytest.raises(MissingFileError, match=r"no image set 'tranval'.*did you mean 'trainval'"):
        VOCDataset(tmp_path, image_set="tranval")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"test\.txt lists no image"):
        VOCDataset(tmp_path, image_set="test")
    (folder / "JPEGImages" / "a.jpg").unlink()
    (folder / "JPEGImages").rmdir()
    with pytest.raises(DataError, match="it has no JPEGImages"):
        VOCDataset(tmp_path)


def test_a_truncated_photo_is_named_when_read_and_by_verify(
    tmp_path: Path, write_voc: Callable[..., Path]
) -> None:
    folder = write_voc(tmp_path, {"a": [], "b": []})
    photo = folder / "JPEGImages" / "b.jpg"
    photo.write_bytes(photo.read_bytes()[:-80])
    data = VOCDataset(tmp_path)
    with pytest.raises(DataError, match=r"b\.jpg is damaged: .*truncated"):
        data[1]
    with pytest.raises(DataError, match=r"1 problem\n.*b\.jpg is damaged"):
        data.verify()


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_images": 0},
        {"subtract_one": "one"},
        {"class_names": ()},
        {"class_names": "dog"},
        {"class_names": ["a", "a"]},
    ],
)
def test_arguments_are_checked(
    tmp_path: Path, write_voc: Callable[..., Path], arguments: dict[str, object]
) -> None:
    write_voc(tmp_path, {"a": []})
    with pytest.raises(ArgumentError):
        VOCDataset(tmp_path, **arguments)  # type: ignore[arg-type]


def test_workers_get_the_same_items(tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    write_voc(tmp_path, {f"{i}": [("dog", (1, 1, 9 + i, 9))] for i in range(6)})
    data = VOCDataset(tmp_path)
    for copy in (pickle.loads(pickle.dumps(data)), torch.utils.data.DataLoader(data, None, num_workers=1)):
        for ours, theirs in zip(data, copy, strict=True):
            assert (
                ours.id == theirs.id
                and torch.equal(ours.image, theirs.image)
                and torch.equal(ours.boxes, theirs.boxes)
            )


def test_real_photos_are_read_without_a_complaint(shared: Path) -> None:
    data = VOCDataset(shared / "voc"), VOCDataset(shared / "voc", image_set="test")
    assert [len(part) for part in data] == [1000, 500]
    for part in data:
        part.verify()
        assert part.presence().present.any(1).all()


def test_an_index_is_read_instead_of_annotations_that_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo_devkit(tmp_path, num_train=6, num_test=2)
    time.sleep(0.1)  # so long that a change would show in the files' times
    how = {"image_set": "trainval", "class_names": DEMO_CLASSES}
    plain = VOCDataset(tmp_path, **how)
    read: list[str] = []
    whole = voc_files.read_annotation
    monkeypatch.setattr(voc_files, "read_annotation", lambda path: read.append(path.stem) or whole(path))

    def same(index: Path | None) -> bool:
        data = VOCDataset(tmp_path, index=index, **how)
        assert [*data._records] == [*plain._records] and data.ids == plain.ids
        return torch.equal(data.presence().present, plain.presence().present)

    index = tmp_path / "cache" / "index"
    assert same(index) and read == list(plain.ids)
    read.clear()
    assert same(index) and read == []
    changed = next(tmp_path.rglob(f"{plain.ids[2]}.xml"))
    changed.write_text(changed.read_text().replace("<xmax>", "<xmax>9", 1))
    problems = []
    for kept in (None, index, index):  # what is wrong is told each time
        with pytest.raises(DataError, match="reaches out of the image") as refused:
            VOCDataset(tmp_path, index=kept, **how)
        problems.append(str(refused.value))
    assert len(set(problems)) == 1
    photos = open_photos(tmp_path, bad_boxes="skip", index=index)
    assert photos.train.bad_box_counts["skipped"] == 1 and photos.train.ids == plain.ids
