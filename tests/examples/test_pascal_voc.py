"""The bundled script trains, saves, resumes, tests, and refuses bad input with one clear error."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from transferkit.datasets import DEMO_CLASSES
from transferkit.finetune import read_run


def model_of(path: Path) -> dict[str, torch.Tensor]:
    return read_run(path)["model"]


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_tells_both_regimes_and_leaves_its_results(call, tmp_path: Path) -> None:
    outcome = call("-e", 1)
    assert outcome.status == 0, outcome.err
    assert "pretrained    SGD, learning rate" in outcome.out
    assert "from scratch  SGD, learning rate" in outcome.out
    results = tmp_path / "results"
    metrics = json.loads((results / "metrics.json").read_text())
    assert 0 <= metrics["mean_ap"] <= 1
    assert metrics["settings"]["protocol"] == "demo"
    assert metrics["transfer"]["entries"]
    assert len(rows_of(results / "history.csv")) == 1
    table = rows_of(results / "average_precision.csv")
    assert len(table) == 11  # ten classes and the mean
    for interpolation in ("all-points", "11-point", "none"):
        for difficult in ("ignored", "positive"):
            assert f"{interpolation}, difficult {difficult}" in table[0]
    assert len(list((results / "devkit").glob("comp2_cls_test_*.txt"))) == 10
    assert (results / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_stopping_and_resuming_gives_bit_equal_weights(call, tmp_path: Path) -> None:
    assert call("-e", 3, "--save_path", tmp_path / "at_once.pt").status == 0
    assert call("-e", 1, "--save_path", tmp_path / "run.pt").status == 0
    resumed = call("-e", 3, "--model_file", tmp_path / "run.pt", "--save_path", tmp_path / "run.pt")
    assert resumed.status == 0, resumed.err
    assert_bit_equal(model_of(tmp_path / "at_once.pt"), model_of(tmp_path / "run.pt"))


def test_a_resumed_run_remembers_what_the_command_line_leaves_out(call, tmp_path: Path) -> None:
    call("-e", 1, "--freeze", "features", "--patches_per_image", 128, "-r", 5)
    run = tmp_path / "results" / "run.pt"
    outcome = call("--model_file", run, "-e", 2, "--results", tmp_path / "results", plain=True)
    assert outcome.status == 0, outcome.err
    state = read_run(run)
    assert state["epoch"] == 2
    assert state["frozen"] == [f"features.{i}" for i in (0, 3, 6, 8, 10)]
    assert state["settings"]["patches_per_image"] == 128
    assert state["settings"]["rng_seed"] == 5


def test_testing_a_saved_run_gives_the_figures_it_ended_with(call, tmp_path: Path) -> None:
    call("-e", 1)
    after_training = json.loads((tmp_path / "results" / "metrics.json").read_text())
    outcome = call("-e", 0, "--model_file", tmp_path / "results" / "run.pt", "--results", tmp_path / "again")
    assert outcome.status == 0, outcome.err
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["result"] == after_training["result"]


def test_the_last_epochs_are_kept(call, tmp_path: Path) -> None:
    call("-e", 3, "--history", 2, "--save_path", tmp_path / "saved" / "run.pt")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["run.pt", "run_2.pt", "run_3.pt"]


def test_frozen_layers_are_the_source_s_and_the_rest_is_trained(call, weights: Path, tmp_path: Path) -> None:
    call("-e", 1, "--freeze", "features.3")
    source, trained = torch.load(weights, weights_only=True), model_of(tmp_path / "results" / "run.pt")
    assert torch.equal(source["features.3.weight"], trained["features.3.weight"])
    assert not torch.equal(source["features.6.weight"], trained["features.6.weight"])


def test_from_scratch_takes_nothing_from_the_weights(call, tmp_path: Path) -> None:
    outcome = call("-e", 1, "--from_scratch", "--weights", tmp_path / "not there.pt")
    assert outcome.status == 0, outcome.err
    assert read_run(tmp_path / "results" / "run.pt")["transfer"] is None


def test_the_score_is_tested_along_the_way_when_asked(call, tmp_path: Path) -> None:
    call("-e", 2, "--eval_freq", 1)
    records = rows_of(tmp_path / "results" / "history.csv")
    final = json.loads((tmp_path / "results" / "metrics.json").read_text())["mean_ap"]
    assert float(records[-1]["mean_ap"]) == pytest.approx(final)


# A run file is data, and may be anybody's.


@pytest.fixture(scope="module")
def saved(script, scenes: Path, weights: Path, tmp_path_factory) -> Path:
    """The file of a run of one epoch."""
    results = tmp_path_factory.mktemp("saved")
    words = [
        "--data_dir", scenes, "--weights", weights, "--model", "alexnet-small", "--protocol", "demo", "--amp",
        "--classes", ",".join(DEMO_CLASSES), "--num_workers", 0, "--results", results, "-e", 1, "--report",
    ]  # fmt: skip
    assert script.main([str(word) for word in words]) == 0
    return results / "run.pt"


@pytest.fixture
def received(saved: Path, tmp_path: Path):
    """Return a function that changes settings in a copy of the run file, in a folder of its own, and gives its path."""

    def change(**settings: object) -> Path:
        state = torch.load(saved, weights_only=True)
        state["settings"].update(settings)
        (tmp_path / "received").mkdir()
        torch.save(state, tmp_path / "received" / "run.pt")
        return tmp_path / "received" / "run.pt"

    return change


def test_a_resumed_run_goes_on_as_it_was_asked_beside_its_file(
    call, received, scenes: Path, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = received()
    outcome = call("--model_file", run, "-e", 2, "--num_workers", 0, plain=True)
    assert outcome.status == 0, outcome.err
    assert f"{run}: data_dir {str(scenes)!r}" in outcome.out
    assert read_run(run)["epoch"] == 2
    settings = read_run(run)["settings"]
    assert (settings["amp"], settings["report"]) == (True, True)
    assert (run.parent / "report.html").exists()
    assert [child.name for child in tmp_path.iterdir()] == ["received"]


def test_what_is_typed_goes_before_what_the_run_file_says(call, received, tmp_path: Path) -> None:
    run = received(rng_seed="none", amp="yes", pyramid_scales={"a": 1}, model="os:abort", report=3)
    words = ["-r", 5, "--no-amp", "--pyramid_scales", "1,2", "--model", "alexnet-small", "--no-report", "-e", 0]
    outcome = call("--model_file", run, *words, "--num_workers", 0, "--results", tmp_path / "mine", plain=True)
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "mine" / "metrics.json").exists()
    assert [child.name for child in run.parent.iterdir()] == ["run.pt"]


@pytest.mark.parametrize(
    "name",
    [
        "results",
        "save_path",
        "cache_dir",
        "model_file",
        "profile",
        "demo",
        "backend",
        "main",
        "epochs",
        "__class__",
    ],
)
def test_a_run_file_says_neither_where_things_go_nor_what_the_script_did_not_write(
    call, received, tmp_path: Path, name: str
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    run = received(**{name: str(tmp_path / "home" / "notes.txt")})
    outcome = call("--model_file", run, "-e", 2, "--num_workers", 0, "--no-report", plain=True)
    assert outcome.status == 0, outcome.err
    assert [child.read_text() for child in (tmp_path / "home").iterdir()] == ["mine"]
    assert read_run(run)["epoch"] == 2


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("model", "os:abort", "network is 'os:abort'.*if you trust it, type it: .* --model os:abort$"),
        ("model", "a\x1b]0;b\x07:c", r"network is 'a\\x1b\]0;b\\x07:c'.* --model MODULE:FACTORY$"),
        ("model", ["os:abort"], "--model MODULE:FACTORY$"),
        ("batch_size", 0, "at least 1, got 0.*type it: .* --batch_size ...$"),
        ("batch_size", {"a": 1}, "batch_size"),
        ("learning_rate", "fast", "learning_rate"),
        ("features", "evil", "invalid choice: 'evil'"),
        ("protocol", "mine", "invalid choice: 'mine'"),
        ("amp", "yes", "amp must be True or False, got 'yes'"),
        ("from_scratch", 1, "from_scratch must be True or False, got 1"),
        ("allow_missing", ["--results", "home"], "without '-' in front"),
        ("rng_seed", "--results=home", "invalid int value: '--results=home'"),
        ("chosen", [1], "choice on held-out photos"),
        ("chosen", [0, 5.0], "epochs must be a whole number above 0, got 0"),
        ("chosen", [3, float("nan")], "exponent must be above 0, got nan"),
    ],
)
def test_a_setting_of_a_run_file_is_checked_as_if_it_had_been_typed(
    call, received, name: str, value: object, words: str
) -> None:
    outcome = call("--model_file", received(**{name: value}), "-e", 2, plain=True)
    refused(outcome)
    assert re.search(words, outcome.err.strip()), outcome.err


def test_a_run_that_keeps_epochs_deletes_and_replaces_none_of_another_run(call, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for name in ("run_0.pt", "run_9.pt", "run_x.pt", "run_01.pt"):
        (results / name).write_bytes(b"mine")
    assert call("-e", 4, "--history", 2).status == 0
    assert sorted(path.name for path in results.glob("run*")) == [
        "run.pt", "run_0.pt", "run_01.pt", "run_3.pt", "run_4.pt", "run_9.pt", "run_x.pt",
    ]  # fmt: skip
    assert {path.read_bytes() for path in results.glob("run_[09x]*.pt")} == {b"mine"}
    refused(call("-e", 4, "--history", 2), "run_3.pt, run_4.pt", "another run", "move what you need")


# Bad input: one clear error, exit status 2, nothing trained and nothing lost.


def refused(outcome, *words: str) -> None:
    assert outcome.status == 2, outcome.out
    assert outcome.err.startswith("pascal_voc.py: error: ")
    assert "Traceback" not in outcome.err
    assert "epoch 1" not in outcome.out, "it trained before it complained"
    for word in words:
        assert word in outcome.err, outcome.err


def test_a_missing_data_folder(call, tmp_path: Path) -> None:
    refused(call("--data_dir", tmp_path / "nowhere"), "nowhere", "Annotations")


def test_half_a_voc_folder(call, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "VOCdevkit" / "VOC2007" / "JPEGImages")
    refused(call("--data_dir", tmp_path / "half"), "JPEGImages")


def test_a_missing_annotation(call, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    annotation = tmp_path / "data" / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml"
    annotation.unlink()
    refused(call("--data_dir", tmp_path / "data"), "000003.xml")


def test_an_annotation_that_lies_about_its_photo(call, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    annotation = tmp_path / "data" / "VOCdevkit" / "VOC2007" / "Annotations" / "000002.xml"
    annotation.write_text(annotation.read_text().replace("<width>144</width>", "<width>999</width>"))
    refused(call("--data_dir", tmp_path / "data"), "000002.xml", "999", "144")


def test_a_class_that_nobody_knows(call) -> None:
    refused(call("--classes", "digit0,digit1,digit2,digit3,digit4"), "digit5")


def test_a_truncated_photo(call, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "data")
    photo = tmp_path / "data" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000004.jpg"
    photo.write_bytes(photo.read_bytes()[:1500])
    refused(call("--data_dir", tmp_path / "data"), "000004.jpg")


def test_weights_that_do_not_fit(call, tmp_path: Path) -> None:
    torch.save(
        {"features.0.weight": torch.zeros(7, 3, 5, 5), "features.0.bias": torch.zeros(7)}, tmp_path / "odd.pt"
    )
    refused(
        call("--weights", tmp_path / "odd.pt"), "features.0", "[7, 3, 5, 5]", "[16, 3, 5, 5]", "bit for bit"
    )


def test_weights_without_the_fully_connected_layers(call, weights: Path, tmp_path: Path) -> None:
    features = {k: v for k, v in torch.load(weights, weights_only=True).items() if k.startswith("features")}
    torch.save(features, tmp_path / "features.pt")
    refused(
        call("--weights", tmp_path / "features.pt"),
        "classifier.1", "classifier.4", "--allow_missing 'classifier.*'",
    )  # fmt: skip
    allowed = call("-e", 1, "--weights", tmp_path / "features.pt", "--allow_missing", "classifier.*")
    assert allowed.status == 0, allowed.err


def test_a_run_of_another_architecture(call, tmp_path: Path) -> None:
    call("-e", 1)
    other = call("--model", "alexnet", "--model_file", tmp_path / "results" / "run.pt", "-e", 2)
    refused(other, "features.0", "[64, 3, 11, 11]")


def test_a_save_path_that_cannot_be_written(call, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(call("--save_path", tmp_path / "file" / "run.pt"), "cannot write", "file/run.pt")


def test_patches_that_do_not_fill_the_minibatches_of_neon2016(call) -> None:
    refused(
        call("--protocol", "neon2016", "--patches_per_image", 100), "multiple of batch_size 64", "64 or 128"
    )


def test_a_device_that_is_not_there(call) -> None:
    refused(call("-b", "tpu9"), "cpu, gpu or cuda:N")
    if not torch.cuda.is_available():
        refused(call("-b", "gpu"), "CUDA", "-b cpu")


def test_no_data_and_no_network(call, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRANSFERKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRANSFERKIT_VOC_URL", "http://127.0.0.1:9/")
    refused(call(plain=True), str(tmp_path / "home"), "http://127.0.0.1:9/", "--demo")
