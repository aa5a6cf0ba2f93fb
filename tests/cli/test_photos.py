"""The commands for photos, from a folder to predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.finetune.test_predictions import photo
from transferkit.cli import main
from transferkit.features.shards import Shards
from transferkit.finetune import SceneClassifier, small_alexnet

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos by class, and new ones beside them."""
    path = tmp_path_factory.mktemp("pets")
    for index in range(20):
        one = photo(index)
        place = path / "photos" / ("white", "black")[index % 2] / one.id
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one.image.permute(1, 2, 0).numpy()).save(place)
    (path / "new").mkdir()
    for index in range(30, 34):
        Image.fromarray(photo(index).image.permute(1, 2, 0).numpy()).save(path / "new" / photo(index).id)
    torch.manual_seed(0)
    torch.save(small_alexnet(10).state_dict(), path / "small.pt")
    return path


@pytest.fixture(scope="module")
def pets(folder: Path) -> Path:
    words = [
        "fit",
        folder / "photos",
        "--out",
        folder / "pets.tk",
        "--model",
        "alexnet-small",
        "-e",
        1,
        "--device",
        "cpu",
    ]
    words += ["--weights", folder / "small.pt", "--num_workers", 0, "--license", "CC0-1.0"]
    assert main([str(word) for word in words]) == 0
    return folder / "pets.tk"


def test_fit_ends_with_a_file_its_card_and_what_to_do_next(folder: Path, capsys: Capture) -> None:
    words = f"fit {folder}/photos --out {folder}/a.tk --model alexnet-small --weights {folder}/small.pt -e 1"
    assert main([*words.split(), "--device", "cpu", "--num_workers", "0"]) == 0
    told = capsys.readouterr().out
    assert "(classes): train: ClassFolderDataset(20 images, 2 classes" in told
    assert "no test set: 4 of 20 photos are held out to test on" in told
    assert "2 classes, mean AP " in told and told.endswith("PHOTOS --csv predictions.csv\n")
    assert SceneClassifier.load(folder / "a.tk", device="cpu").class_names == ("background", "black", "white")
    assert json.loads((folder / "a.tk.json").read_text())["data"]["photos"] == 16


def test_predictions_go_to_a_table_to_lines_or_to_the_terminal(
    pets: Path, folder: Path, capsys: Capture
) -> None:
    assert main(["predict", str(pets), f"{folder}/new", "--csv", f"{folder}/out.csv", "--device", "cpu"]) == 0
    with (folder / "out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["file", "black", "white"] and [row[0] for row in rows] == [
        "30.png",
        "31.png",
        "32.png",
        "33.png",
    ]
    assert (
        main(["predict", str(pets), f"{folder}/new", "--jsonl", f"{folder}/out.jsonl", "--device", "cpu"]) == 0
    )
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [[line["scores"]["black"], line["scores"]["white"]] for line in lines] == [
        [float(cell) for cell in row[1:3]] for row in rows
    ]
    assert len(lines[0]["boxes"]["white"]) == 4
    capsys.readouterr()
    assert main(["predict", str(pets), f"{folder}/new/30.png", f"{folder}/new/31.png", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_a_photo_that_cannot_be_used_is_listed_and_the_status_says_so(
    pets: Path, folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    (tmp_path / "bad\x1b[31m.png").write_bytes(b"no photo")
    (tmp_path / "good.png").write_bytes((folder / "new" / "30.png").read_bytes())
    assert (
        main(["predict", str(pets), str(tmp_path), "--csv", str(tmp_path / "out.csv"), "--device", "cpu"]) == 1
    )
    told = capsys.readouterr()
    assert "skipped bad\\x1b[31m.png: DataError" in told.err and "out.csv: 1 photo\n" in told.out


def test_maps_are_written(pets: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = [
        "predict",
        str(pets),
        f"{folder}/new",
        "--maps",
        str(tmp_path / "maps"),
        "--csv",
        str(tmp_path / "a.csv"),
    ]
    assert main([*words, "--device", "cpu"]) == 0
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"{index}.png.png" for index in range(30, 34)
    ]


def test_shards_are_joined(pets: Path, folder: Path, capsys: Capture, tmp_path: Path) -> None:
    how = ["--device", "cpu", "--num_workers", "0"]
    for number in (2, 1):
        words = ["predict", pets, folder / "new", "--csv", tmp_path / "out.csv", "--shard", f"{number}/2", *how]
        assert main([str(word) for word in words]) == 0
    assert main(["predict", str(pets), f"{folder}/new", "--csv", f"{tmp_path}/whole.csv", *how]) == 0
    capsys.readouterr()
    assert main(["join", f"{tmp_path}/out.csv"]) == 0
    assert capsys.readouterr().out.endswith("out.csv: 4 photos\n")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_features_are_computed_in_shards_and_used_by_the_fit(
    folder: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"fit {folder}/photos --out {tmp_path}/a.tk --model alexnet-small --weights {folder}/small.pt -e 1"
    fit = [*words.split(), "--device", "cpu", "--num_workers", "0", "--cache_dir", f"{tmp_path}/features"]
    for number in (1, 2, 3):
        assert main([*fit, "--shard", f"{number}/3"]) == 0
    assert "features of 6 of 16 photos are in " in capsys.readouterr().out
    assert not (tmp_path / "a.tk").exists()
    assert main(["join", f"{tmp_path}/features"]) == 0
    assert capsys.readouterr().out.endswith("features: features of 16 photos moved there\n")
    computed: list[object] = []
    write = Shards.write
    monkeypatch.setattr(Shards, "write", lambda self, *some: (computed.append(some), write(self, *some)))
    assert main([*fit, "--test_share", "0.2"]) == 0
    assert len(computed) == 4  # of the photos held out to test on alone


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("predict {pets} {new} --shard 1/2", "--shard is a share of a file: say which, with --csv or --jsonl"),
        (
            "predict {pets} {new} --csv a.csv --shard 3/2",
            "shard must be number/count, such as 3/8 of 1/8 to 8/8",
        ),
        ("fit {new} --out a.tk --shard 1/2", "say where they go, with --cache_dir DIR"),
        ("join a.csv", "no shard of a.csv is there"),
        ("predict {pets} {new} --precision 0.9 --csv a.csv --jsonl b.jsonl", "give --csv or --jsonl, not both"),
        ("predict {new}/30.png {new}", "cannot be read as a saved classifier"),
        ("predict {pets} {new}/nowhere", "no file or folder"),
        (
            "fit {new} --out a.tk --protocol mine",
            "--protocol must be one of neon2016, oquab2014, recommended, got ",
        ),
        ("fit {new} --out a.tk --model alexnet-small", "holds nothing that says what photos show"),
    ],
)
def test_refusals_are_a_line_and_status_2(
    words: str,
    told: str,
    pets: Path,
    folder: Path,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.format(pets=pets, new=folder / "new") for word in words.split()]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
