"""The devkit's result files: what goes out comes in, and an independent reader of the devkit's rules agrees."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from transferkit.errors import ArgumentError, DataError, MissingFileError
from transferkit.scorer import (
    VOC2007,
    average_precision,
    evaluate,
    read_devkit_results,
    write_devkit_results,
)

NAMES = ("background", "cat", "dog")


@pytest.fixture
def scored():
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(30, 3, generator=generator, dtype=torch.float64) ** 9
    scores[3, 1] = scores[8, 1] = -math.inf
    return scores, tuple(f"{7 * n:06}" for n in range(30))


def test_what_goes_out_comes_in_to_the_last_digit(tmp_path, scored):
    scores, ids = scored
    files = write_devkit_results(tmp_path / "Main", scores, image_ids=ids, class_names=NAMES)
    assert [file.name for file in files] == ["comp1_cls_test_cat.txt", "comp1_cls_test_dog.txt"]
    assert len(files[0].read_text().splitlines()) == 28
    read = read_devkit_results(tmp_path / "Main", image_ids=ids, class_names=NAMES)
    assert torch.equal(read[:, 1:], scores[:, 1:])
    assert (read[:, 0] == -math.inf).all()


def test_a_devkit_reading_of_the_files_gives_the_same_ap(tmp_path, scored):
    """VOCevalcls.m on the files themselves: the set's order, -inf where absent, stable sort, 11 points."""
    scores, ids = scored
    scores = (scores * 5).round() / 5  # ties
    present = torch.rand(30, 3, generator=torch.Generator().manual_seed(4)) < 0.4
    present[:, 0] = False
    difficult = present & (torch.rand(30, 3, generator=torch.Generator().manual_seed(5)) < 0.3)
    files = write_devkit_results(tmp_path, scores, image_ids=ids, class_names=NAMES)
    result = evaluate(scores, present, difficult, class_names=NAMES)
    for column, file in enumerate(files, start=1):
        truth = [0 if difficult[n, column] else 1 if present[n, column] else -1 for n in range(30)]
        out = [-math.inf] * 30
        for line in file.read_text().splitlines():
            out[ids.index(line.split()[0])] = float(line.split()[1])
        hits = alarms = 0
        points = []
        for n in sorted(range(30), key=lambda n: -out[n]):
            hits, alarms = hits + (truth[n] > 0), alarms + (truth[n] < 0)
            if hits + alarms:
                points.append((Fraction(hits, hits + alarms), Fraction(hits, truth.count(1))))
        eleven = [max((p for p, r in points if r >= Fraction(k, 10)), default=0) for k in range(11)]
        assert result.ap[VOC2007][column - 1] == pytest.approx(float(sum(eleven) / 11), abs=1e-12)


def test_the_official_truth_files_agree_with_the_annotations(shared):
    """Against VOC's own ImageSets/Main/dog_test.txt (1, 0, -1) and against the XML, scores have the same AP."""
    from transferkit.datasets import VOCDataset

    dataset = VOCDataset(shared / "voc", image_set="test")
    presence = dataset.presence()
    names = dataset.class_names
    main = shared / "voc" / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    scores = torch.rand(
        len(dataset), len(names), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    result = evaluate(scores, presence.present, presence.difficult_only, class_names=names)
    for column, name in enumerate(names[1:], start=1):
        pairs = [line.split() for line in (main / f"{name}_test.txt").read_text().splitlines()]
        truth = torch.tensor([int(value) for _, value in pairs])
        assert int((truth > 0).sum()) == result.positives[column - 1]
        assert int((truth == 0).sum()) == result.difficult[column - 1]
        ap = average_precision(scores[:, column], truth > 0, ignore=truth == 0, interpolation="11-point")
        assert ap.item() == result.ap[VOC2007][column - 1]


def test_classes_and_images_of_any_language(tmp_path, scored):
    scores, ids = scored
    ids, names = tuple(f"été{name}" for name in ids), ("background", "traffic light", "犬")
    write_devkit_results(tmp_path, scores, image_ids=ids, class_names=names, competition="comp2")
    assert (tmp_path / "comp2_cls_test_traffic light.txt").is_file()
    read = read_devkit_results(tmp_path, image_ids=ids, class_names=names, competition="comp2")
    assert torch.equal(read[:, 1:], scores[:, 1:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000000 0.5\n000007\n", "line 2: expected 'image score', got '000007'"),
        ("000000 high\n", "line 1: expected 'image score'"),
        ("000000 nan\n", "line 1: the score of image '000000' is not a number"),
        ("000001 0.5\n", "line 1: image '000001' is not in the image set; did you mean"),
        ("000007 0.5\n000007 0.6\n", "line 2: image '000007' is scored a second time"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, scored, text, message):
    scores, ids = scored
    files = write_devkit_results(tmp_path, scores, image_ids=ids, class_names=NAMES)
    files[1].write_text(text)
    with pytest.raises(DataError, match=f"comp1_cls_test_dog.txt, {message}"):
        read_devkit_results(tmp_path, image_ids=ids, class_names=NAMES)


def test_a_missing_file_and_arguments_that_do_not_fit(tmp_path, scored):
    scores, ids = scored
    write_devkit_results(tmp_path, scores, image_ids=ids, class_names=NAMES)
    with pytest.raises(
        MissingFileError, match=r"comp1_cls_test_dogs.txt; did you mean 'comp1_cls_test_dog.txt'"
    ):
        read_devkit_results(tmp_path, image_ids=ids, class_names=("dogs",))
    with pytest.raises(ArgumentError, match="distinct"):
        read_devkit_results(tmp_path, image_ids=("a", "a"), class_names=NAMES)
    with pytest.raises(ArgumentError, match=r"scores must be of shape \(29, 3\)"):
        write_devkit_results(tmp_path, scores, image_ids=ids[1:], class_names=NAMES)
    with pytest.raises(ArgumentError, match=r"image_ids must be without blanks, got \['b c', ''\]"):
        write_devkit_results(tmp_path, scores[:3], image_ids=("a", "b c", ""), class_names=NAMES)
    with pytest.raises(ArgumentError, match=r"class_names must be names that a file can have, got \['b/c'\]"):
        write_devkit_results(tmp_path, scores, image_ids=ids, class_names=("a", "b/c", "d e"))
    with pytest.raises(ArgumentError, match="or -inf where unscored"):
        write_devkit_results(tmp_path, scores * math.nan, image_ids=ids, class_names=NAMES)


def test_names_that_no_file_has_are_written_otherwise_on_request(tmp_path, scored):
    scores, _ = scored
    scores = scores[:4]
    ids, names = ("IMG_1", "IMG_1 (2)", "cats/1.jpg", "a\tb"), ("background", "traffic/light", "../dog")
    folder = tmp_path / "devkit"
    for image_set in ("../out", "a/b", ""):
        with pytest.raises(ArgumentError, match="image_set must be a name that a file can have"):
            write_devkit_results(folder, scores, image_ids="abcd", class_names=NAMES, image_set=image_set)
    arguments = {"image_ids": ids, "class_names": names, "image_set": "Layout/val"}
    with pytest.raises(ArgumentError):
        write_devkit_results(folder, scores, **arguments)
    assert not folder.exists()
    files = write_devkit_results(folder, scores, **arguments, rename=True)
    assert {path.parent for path in files} == {folder} and [path.name for path in tmp_path.iterdir()] == [
        "devkit"
    ]
    assert all(len(line.split()) == 2 for file in files for line in file.read_text().splitlines())
    assert torch.equal(read_devkit_results(folder, **arguments, rename=True)[:, 1:], scores[:, 1:])
    with pytest.raises(ArgumentError, match="image_ids must be distinct"):
        write_devkit_results(folder, scores, image_ids=("a", "a", "b", "c"), class_names=NAMES)
