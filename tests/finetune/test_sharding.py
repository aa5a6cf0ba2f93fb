# ruff: noqa: F401, F811 - fixtures of another file
"""Jobs that know nothing of each other each do a share, and what they wrote is joined to what one job writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.finetune.test_predictions import fitted, folder, photo
from transferkit.errors import ArgumentError, DataError, MissingFileError, StateError
from transferkit.finetune import SceneClassifier, Shard, join_predictions


@pytest.mark.parametrize("length", [0, 1, 5, 8, 1000])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_shards_cut_a_sequence_into_pieces_of_nearly_one_length(length: int, count: int) -> None:
    shares = [Shard(number, count).of(length) for number in range(1, count + 1)]
    assert [place for share in shares for place in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "a/b", "1/0", "-1/3", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="shard must be number/count"):
        Shard.parse(text)


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_shards_of_any_number_are_joined_to_what_one_job_writes(
    fitted: SceneClassifier,
    folder: Path,
    tmp_path: Path,
    suffix: str,
) -> None:
    (tmp_path / "photos").mkdir()
    for file in folder.iterdir():
        (tmp_path / "photos" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "photos" / "41.png").write_bytes(b"none")
    photos, whole = tmp_path / "photos", tmp_path / f"whole{suffix}"
    told = fitted.predict_to(whole, photos, boxes=True)
    for count in (3, 30):  # 30: more than there are photos
        path = tmp_path / f"out_{count}{suffix}"
        for number in reversed(range(1, count + 1)):
            fitted.predict_to(path, photos, boxes=True, shard=Shard(number, count))
        joined = join_predictions(path)
        assert path.read_bytes() == whole.read_bytes()
        assert (joined.photos, joined.bad_photos) == (told.photos, told.bad_photos)
        assert joined.bad_photos.keys() == {"41.png"}


def test_a_shard_that_was_stopped_goes_on_and_one_that_is_done_is_not_done_again(
    fitted: SceneClassifier,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transferkit.finetune._predicting.SECONDS", 0.0)
    path, lots = tmp_path / "out.csv", []

    def stop(lot: object) -> None:
        lots.append(lot)
        if len(lots) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted.predict_to(path, folder, shard=Shard(1, 2), on_lot=stop)
    with pytest.raises(MissingFileError, match="no shard of .*out.csv is there, such as out.csv.1-of-8"):
        join_predictions(path)
    assert fitted.predict_to(path, folder, shard=Shard(1, 2)).resumed > 0
    assert fitted.predict_to(path, folder, shard=Shard(1, 2)).resumed == 10
    with pytest.raises(DataError, match=r"shards of .* are not done: 2/2"):
        join_predictions(path)
    fitted.predict_to(path, folder, shard=Shard(2, 2))
    assert join_predictions(path).photos == 20


def test_shards_that_do_not_belong_together_are_refused(
    fitted: SceneClassifier,
    folder: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.csv"
    fitted.predict_to(path, folder, shard=Shard(1, 2))
    some = sorted(folder.iterdir())[:18]
    fitted.predict_to(path, some, shard=Shard(2, 2), boxes=True)
    with pytest.raises(
        StateError, match="out.csv.2-of-2 was made with another boxes, photos, ids than out.csv.1"
    ):
        join_predictions(path)
    fitted.predict_to(path, folder, shard=Shard(2, 2), resume=False)
    join_predictions(path)
    second = tmp_path / "out.csv.2-of-2"
    second.write_bytes(second.read_bytes()[:-60])
    with pytest.raises(DataError, match="is damaged: it holds 9 of 10 photos"):
        join_predictions(path)
    second.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(DataError, match="is not a shard of predictions, or damaged"):
        join_predictions(path)
    (tmp_path / "out.csv.3-of-4").touch()
    with pytest.raises(DataError, match="was cut into 2 and 4 shards; delete those of an earlier job"):
        join_predictions(path)


def test_a_share_of_an_unknown_number_is_refused(fitted: SceneClassifier, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="photos must be of a known number"):
        fitted.predict_to(tmp_path / "a.csv", (photo(index) for index in range(3)), shard=Shard(1, 2))
