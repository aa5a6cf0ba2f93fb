"""New photos: scored as in the test, into memory or a file, whatever stops on the way."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from transferkit.errors import ArgumentError, StateError
from transferkit.finetune import RECOMMENDED, Predictions, SceneClassifier
from transferkit.finetune._predicting import windows
from transferkit.finetune.predictions import write_predictions
from transferkit.preprocessing import IMAGENET
from transferkit.sampler import AnnotatedImage

RECIPE = replace(RECOMMENDED, patch_size=32, epochs=2, hidden=(16,), choice=None)


def photo(index: int, labeled: bool = False) -> AnnotatedImage:
    """A gray photo with a white or a black square: class 1 or 2."""
    draws = torch.Generator().manual_seed(index)
    image = torch.randint(90, 160, (3, 64, 64), generator=draws, dtype=torch.uint8)
    kind = 1 + index % 2
    image[:, 10:44, 10:44] = 255 * (kind == 1)
    flag, box = torch.tensor([False]), torch.tensor([[10.0, 10, 44, 44]])
    if labeled:
        none = torch.zeros(0)
        return AnnotatedImage(image, torch.zeros(0, 4), none.long(), none.bool(), none.bool(), f"{index:02}.png",
                              torch.tensor([kind]))  # fmt: skip
    return AnnotatedImage(image, box, torch.tensor([kind]), flag, flag, f"{index:02}.png")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 10))
    model.preprocessing = IMAGENET
    return model


@pytest.fixture(scope="module")
def fitted() -> SceneClassifier:
    classifier = SceneClassifier(network(), RECIPE, class_names=["white", "black"], device="cpu")
    return classifier.fit([photo(index) for index in range(24)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos")
    for index in range(30, 50):
        one = photo(index)
        Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(path / one.id)
    return path


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_scores_are_those_of_the_test_in_memory_and_in_a_file(
    fitted: SceneClassifier, folder: Path, tmp_path: Path
) -> None:
    wanted = fitted.score([photo(index) for index in range(30, 50)]).compute()
    assert torch.equal(fitted.predict(folder).scores, wanted)
    written = fitted.predict_to(tmp_path / "out.csv", folder)
    header, *rows = table(written.path)
    assert header == ["file", "white", "black"] and written.photos == 20
    assert [row[0] for row in rows] == sorted(path.name for path in folder.iterdir())
    assert [[float(cell) for cell in row[1:]] for row in rows] == wanted[:, 1:].tolist()
    assert fitted.predict(folder).write(tmp_path / "whole.csv").read_bytes() == written.path.read_bytes()


def test_photos_come_as_files_images_iterators_and_generators(
    fitted: SceneClassifier, folder: Path, tmp_path: Path
) -> None:
    files = sorted(folder.iterdir())
    wanted = fitted.predict(folder).scores
    for photos in (
        files,
        iter(files),
        (photo(index) for index in range(30, 50)),
        (Image.open(one) for one in files),
    ):
        assert torch.equal(fitted.predict(photos).scores, wanted)
    written = fitted.predict_to(tmp_path / "out.jsonl", (Image.open(one) for one in files), boxes=True)
    lines = [json.loads(line) for line in written.path.read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(place) for place in range(20)]
    assert [list(line["scores"].values()) for line in lines] == wanted[:, 1:].tolist()
    assert lines[0]["boxes"]["white"] == fitted.predict(files[:1]).best_boxes[0, 1].tolist()


@pytest.mark.filterwarnings("ignore:skipped")
def test_bad_files_are_listed_and_the_others_predicted(
    fitted: SceneClassifier, folder: Path, tmp_path: Path
) -> None:
    files = sorted(folder.iterdir())
    bad = tmp_path / "bad.png"
    bad.write_bytes(files[0].read_bytes()[:60])
    found = fitted.predict([files[0], bad, files[1]])
    assert list(found.bad_photos) == [str(bad)] and "bad.png" in found.bad_photos[str(bad)]
    assert torch.equal(found.scores, fitted.predict(files[:2]).scores)
    assert found.ids == (str(files[0]), str(files[1]))
    maps = fitted.predict([files[0], bad, files[1]], maps=True)
    assert torch.equal(maps.map(1, "black"), fitted.predict(files[1:2], maps=True).map(0, "black"))
    written = fitted.predict_to(tmp_path / "out.csv", [files[0], bad, files[1]])
    assert written.photos == 2 and len(table(written.path)) == 3 and list(written.bad_photos) == [str(bad)]
    with pytest.raises(Exception, match="bad.png"):
        fitted.predict([files[0], bad], on_bad_photo="error")


class Stopped(Exception):
    pass


def stops_after(lots: int) -> Callable[[Predictions], None]:
    seen = iter(range(lots))

    def stop(lot: Predictions) -> None:
        if next(seen, None) is None:
            raise Stopped

    return stop


def test_a_stopped_job_goes_on_where_it_was(
    fitted: SceneClassifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fitted.predict_to(tmp_path / "whole.csv", folder).path.read_bytes()
    monkeypatch.setattr("transferkit.finetune._predicting.SECONDS", 0.0)
    monkeypatch.setattr("transferkit.finetune.scoring.JOINED", 3)
    path = tmp_path / "out.csv"
    with pytest.raises(Stopped):
        fitted.predict_to(path, folder, on_lot=stops_after(3))
    assert not path.exists()
    part = tmp_path / "out.csv.part"
    with part.open("ab") as file:
        file.write(b'{"file": "of a write that was cut')
    done = part.read_bytes().count(b"\n") - 1
    seen: list[str] = []
    found = fitted.predict_to(path, folder, on_lot=lambda lot: seen.extend(lot.ids))
    assert found.resumed == done > 0 and len(seen) == 20 - done
    assert path.read_bytes() == whole and sorted(one.name for one in tmp_path.iterdir()) == [
        "out.csv",
        "whole.csv",
    ]


def test_rows_of_photos_that_changed_are_not_kept(
    fitted: SceneClassifier, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferkit.finetune._predicting.SECONDS", 0.0)
    monkeypatch.setattr("transferkit.finetune.scoring.JOINED", 1)
    photos = tmp_path / "photos"
    photos.mkdir()
    for one in sorted(folder.iterdir())[:6]:
        (photos / one.name).write_bytes(one.read_bytes())
    with pytest.raises(Stopped):
        fitted.predict_to(tmp_path / "out.csv", photos, on_lot=stops_after(4))
    changed = sorted(photos.iterdir())[1]
    changed.write_bytes(sorted(folder.iterdir())[9].read_bytes())
    found = fitted.predict_to(tmp_path / "out.csv", photos)
    assert found.resumed == 1
    assert found.path.read_bytes() == fitted.predict(photos).write(tmp_path / "new.csv").read_bytes()


def test_another_classifier_does_not_go_on(fitted: SceneClassifier, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fitted.predict_to(tmp_path / "out.csv", folder, on_lot=stops_after(0))
    with pytest.raises(StateError, match=r"begun with another boxes.*resume=False"):
        fitted.predict_to(tmp_path / "out.csv", folder, boxes=True)
    assert fitted.predict_to(tmp_path / "out.csv", folder, boxes=True, resume=False).resumed == 0
    with pytest.raises(ArgumentError, match=r"\.csv or \.jsonl"):
        fitted.predict_to(tmp_path / "out.txt", folder)


def test_memory_holds_one_lot(tmp_path: Path) -> None:
    """A file of a million rows is written from a generator that never holds two lots."""
    alive, most = 0, 0

    class Lot(list):  # type: ignore[type-arg]
        def __init__(self, rows: Any) -> None:
            nonlocal alive, most
            super().__init__(rows)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    ids = [str(index) for index in range(1000)]

    def lots(data: Any, start: int) -> Any:
        for first in range(start, len(ids), 10):
            yield Lot({"file": name, "scores": {"a": 0.5}} for name in ids[first : first + 10])

    names, made_by = ["background", "a"], {"x": math.pi}
    write_predictions(tmp_path / "o.csv", [(ids, ids)], lots, class_names=names, labeled=False, made_by=made_by)
    assert most <= 2 and len(table(tmp_path / "o.csv")) == 1001


@pytest.mark.parametrize("done", [0, 2, 3, 4, 9])
def test_an_iterator_s_lots_follow_each_other_in_one_file(tmp_path: Path, done: int) -> None:
    """Each lot is a data set of its own; a job that was stopped may end within one, or in the middle of a line."""
    sets = [[f"{lot}{name}" for name in "abc"] for lot in range(3)]

    def write(stop: int | None = None) -> int:
        seen = 0

        def lots(data: list[str], start: int) -> Any:
            nonlocal seen
            for name in data[start:]:
                if seen == stop:
                    raise Stopped
                seen += 1
                yield [{"file": name, "scores": {"a": float(name[0])}}]

        how: dict[str, Any] = {"class_names": ["background", "a"], "labeled": False, "made_by": {}}
        return write_predictions(tmp_path / "o.csv", [(ids, ids) for ids in sets], lots, **how).resumed

    if done < 9:
        with pytest.raises(Stopped):
            write(stop=done)
        with (tmp_path / "o.csv.part").open("ab") as file:
            file.write(b"[1]\n{")
    assert write() == done % 9
    assert [row[0] for row in table(tmp_path / "o.csv")[1:]] == [name for ids in sets for name in ids]


def test_windows_keep_images_whole() -> None:
    def part(*images: int) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.tensor(images)
        return index[:, None].double(), index, torch.zeros(len(images), 4)

    parts = [part(2, 2, 3), part(3, 3), part(3, 5), part(5, 6, 6)]
    for most in (1, 2, 3, 100):
        found = list(windows(iter(parts), 2, 8, most=most, seconds=1e9))
        assert [one[0] for one in found] == [2, *(one[1] for one in found[:-1])] and found[-1][1] == 8
        rows = [int(value) for _, _, some in found for _, index, _ in some for value in index]
        assert rows == [2, 2, 3, 3, 3, 3, 5, 5, 6, 6]
        for first, end, some in found:
            assert all(first <= int(value) < end for _, index, _ in some for value in index)


# Labels without boxes.


def test_photos_with_labels_alone_teach_where_the_classes_are() -> None:
    recipe = RECIPE.adjusted(epochs=20, learning_rate=0.05)
    data = [photo(index, labeled=True) for index in range(40)]
    classifier = SceneClassifier(network(), recipe, class_names=["white", "black"], device="cpu").fit(data)
    assert all(record.patches == 0 and "patches right" not in str(record) for record in classifier.run.history)
    losses = [record.image_loss for record in classifier.run.history]
    assert losses[-1] < 0.8 * losses[0]
    assert classifier.test([photo(index) for index in range(60, 80)]).mean_ap() > 0.9


def test_a_recipe_that_learns_from_boxes_alone_refuses_labels() -> None:
    classifier = SceneClassifier(
        network(), replace(RECIPE, image_loss=None), class_names=["white", "black"], device="cpu"
    )
    data = [photo(0), photo(1, labeled=True), photo(2)]
    with pytest.raises(ArgumentError, match=r"1 of 3 photos have labels and no boxes.*image_loss"):
        classifier.fit(data)


def test_boxes_rule_where_there_are_some() -> None:
    """A photo with boxes trains as it would beside others with boxes: by the labels of its patches."""
    data = [photo(0), photo(1, labeled=True)]
    classifier = SceneClassifier(
        network(), replace(RECIPE, epochs=1), class_names=["white", "black"], device="cpu"
    )
    assert classifier.fit(data).run.history[0].patches == 64


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([0.1, 0.1, 0.7, 0.7], "the boxes lie within 0..1: multiply"),
        ([60.0, 60, 63, 63], "median side is 3 pixels"),
    ],
)
def test_what_cannot_be_learned_is_told_with_its_cause(box: list[float], words: str) -> None:
    data = [replace(photo(index), boxes=torch.tensor([box])) for index in range(4)]
    classifier = SceneClassifier(network(), RECIPE, class_names=["white", "black"], device="cpu")
    with pytest.warns(UserWarning, match=words):
        classifier.fit(data)
    other = SceneClassifier(network(), RECIPE, class_names=["white", "black", "red"], device="cpu")
    with pytest.warns(UserWarning, match="no photo shows red: "):
        other.fit([photo(index) for index in range(4)])
