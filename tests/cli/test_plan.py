"""``transferkit plan``: a dry run from the command line."""

from __future__ import annotations

import json

import pytest
import torch

from transferkit.alexnet import AlexNet
from transferkit.cli import main

MODEL = """
import torch
from torch import nn
from transferkit.alexnet import AlexNet

def build():
    return AlexNet(20, channels=(8, 8, 8, 8, 8), hidden=16)

def gray():
    model = build()
    model.features[0] = nn.Conv2d(1, 8, 11, 4, 2)
    return model

def renamed():
    return nn.ModuleDict({"body": build()})

def single():
    return nn.ModuleDict({"entry": nn.Conv2d(3, 8, 11, 4, 2)})

def broken():
    raise RuntimeError("no such size")

number = 3
def no_model():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "plan_models.py").write_text(MODEL)
    state = AlexNet(1000, channels=(8, 8, 8, 8, 8), hidden=16).state_dict()
    torch.save(state, tmp_path / "whole.pth")
    torch.save({k: v for k, v in state.items() if k.startswith("features")}, tmp_path / "features.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # nothing is cut to a width
    monkeypatch.delitem(__import__("sys").modules, "plan_models", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("whole.pth plan_models:build --before classifier.6", 0, "14 copied, 2 skipped"),
        ("whole.pth plan_models:build", 1, "mismatched  classifier.6"),
        ("whole.pth plan_models:build", 1, "on this command line: --exclude classifier.6, or --adapt"),
        ("whole.pth plan_models:build --exclude classifier.6", 0, "14 copied, 2 skipped"),
        ("features.pth plan_models:build --before classifier.6", 1, "--allow_missing 'classifier.*'"),
        ("features.pth plan_models:build --before classifier.6 --allow_missing classifier.*", 0, "10 copied"),
        ("features.pth plan_models:build --name features.* --kind conv", 0, "by_kind('conv') matches 5 layers"),
        ("features.pth plan_models:build --mapping order --before classifier", 0, "mapped by order"),
        ("features.pth plan_models:build --mapping structure --before classifier", 0, "mapped by structure"),
        ("whole.pth plan_models:gray --handler input_channels --before classifier.6", 0, "by input_channels"),
        ("whole.pth plan_models:gray --adapt --before classifier.6", 0, "by input_channels"),
        ("whole.pth plan_models:single", 1, "or let shapes tell: mapping='structure'"),
        ("whole.pth plan_models:gray --mapping structure --before classifier.6", 1, "which source layer it is"),
        (
            "whole.pth plan_models:gray --mapping structure --rename features.0=features.0 "
            "--handler input_channels --before classifier.6",
            0,
            "by input_channels",
        ),
        ("whole.pth plan_models:renamed --rename body.*=* --before body.classifier.6", 0, "14 copied"),
    ],
)
def test_plans(folder, capsys, arguments, status, says):
    assert main(["plan", *arguments.split()]) == status
    printed = capsys.readouterr()
    assert says in printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("none.pth plan_models:build", "none.pth"),
        ("whole.pth plan_models", "a model must be given as module:factory"),
        ("whole.pth plan_modls:build", "module 'plan_modls' cannot be imported"),
        ("whole.pth plan_models:biuld", "module 'plan_models' has no 'biuld'; did you mean 'build'?"),
        ("whole.pth plan_models:broken", "cannot be built: RuntimeError: no such size"),
        ("whole.pth plan_models:no_model", "must build a torch.nn.Module, got int"),
        ("whole.pth plan_models:number", "must be a factory, got 3"),
        ("whole.pth plan_models:build --before clasifier.6", "did you mean 'classifier.6'"),
        ("whole.pth plan_models:build --rename body", "--rename takes TARGET=SOURCE, got 'body'"),
        (
            "whole.pth plan_models:build --rename a=b --mapping order",
            "--rename goes with --mapping name or structure",
        ),
    ],
)
def test_what_cannot_be_planned(folder, capsys, arguments, says):
    assert main(["plan", *arguments.split()]) == 2
    assert says in capsys.readouterr().err


def test_json(folder, capsys):
    assert main(["plan", "whole.pth", "plan_models:build", "--before", "classifier.6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "AlexNet"
