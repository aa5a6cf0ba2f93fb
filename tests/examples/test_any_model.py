"""The bundled script works on any network, by name or from a factory of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from transferkit.datasets import DEMO_CLASSES
from transferkit.finetune import read_run
from transferkit.transfer import TransferReport

MINE = """
import torch
from torch import nn
from transferkit.preprocessing import Preprocessing

def build():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, 1000),
    )
    model.preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return model
"""


def test_a_factory_of_ones_own(call, scenes: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine_for_the_script.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "own" / "run.pt"
    data = (
        "--data_dir",
        scenes,
        "--classes",
        ",".join(DEMO_CLASSES),
        "--num_workers",
        0,
        "--max_train_imgs",
        2,
    )
    network = ("--protocol", "demo", "--model", "mine_for_the_script:build")
    outcome = call(*data, *network, "-e", 1, "--results", run.parent, plain=True)
    assert outcome.status == 0, outcome.err
    assert "mine_for_the_script:build: Sequential, (RGB / 255 - (0.5, 0.5, 0.5))" in outcome.out
    state = read_run(run)
    assert state["preprocessing"]["mean"] == (0.5, 0.5, 0.5)
    assert "0.weight" in TransferReport.from_dict(state["transfer"]).copied
    resumed = ("-e", 0, "--model_file", run, "--results", tmp_path / "again")
    refused = call(*resumed, plain=True)
    assert refused.status == 2
    assert "what a file names is not imported" in refused.err
    assert refused.err.strip().endswith("--model mine_for_the_script:build")
    again = call(*resumed, "--model", "mine_for_the_script:build", plain=True)
    assert again.status == 0, again.err
    figures = [
        json.loads((tmp_path / name / "metrics.json").read_text())["mean_ap"] for name in ("own", "again")
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-12)


def test_a_model_that_nobody_knows(call) -> None:
    outcome = call("--model", "alexnt")
    assert outcome.status == 2
    assert "or module:factory, got 'alexnt'; did you mean 'alexnet'" in outcome.err
