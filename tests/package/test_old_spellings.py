"""What had another name before: places, fields, arguments, flags and settings that go on working, with a warning."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import transferkit as tk
from tests.finetune.tiny import tiny_run
from transferkit.deprecation import renamed_flag
from transferkit.features import PatchFeatures
from transferkit.finetune import DEMO, frozen_features, read_run


def test_places() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"transferkit\.linear_head is transferkit\.heads\.linear_head now"
    ):
        assert tk.linear_head(4, 2).out_features == 2
    with pytest.warns(
        DeprecationWarning, match=r"transferkit\.protocols\.NEON2016 is transferkit\.finetune\.NEON2016"
    ):
        from transferkit.protocols import NEON2016
    assert NEON2016 is tk.NEON2016
    with pytest.raises(ImportError):
        from transferkit.protocols import NEON2017  # noqa: F401


def test_fields_of_a_recipe() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"Protocol\(train_trunk=...\) is Protocol\(train_backbone=...\) now"
    ):
        frozen = replace(DEMO, train_trunk=False)
    assert not frozen.train_backbone and DEMO.train_backbone
    with pytest.warns(DeprecationWarning, match="levels"):
        assert replace(DEMO, levels=3).pyramid_scales == 3
    with pytest.warns(DeprecationWarning, match=r"Protocol\.levels is Protocol\.pyramid_scales now"):
        assert DEMO.levels == DEMO.pyramid_scales


def test_arguments() -> None:
    backbone = nn.Conv2d(3, 4, 3)
    with pytest.warns(DeprecationWarning) as warned:
        features = PatchFeatures(trunk=backbone, method="shared", levels=2, patch_size=32)
    assert features.forward.backbone is backbone and features.pyramid_scales == 2
    assert "PatchFeatures(trunk=...) is PatchFeatures(backbone=...) now" in {
        str(one.message).split(";")[0] for one in warned
    }
    run = tiny_run(frozen=("0", "1"))
    run.model[1].eval()
    with pytest.warns(DeprecationWarning, match="levels"), pytest.raises(tk.TransferKitError):
        frozen_features(run, replace(DEMO, patch_size=4), levels=0)


def test_flags() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pyramid_scales", type=int)
    old = renamed_flag("--levels", "--pyramid_scales", until="0.2")
    parser.add_argument("--levels", dest="pyramid_scales", type=int, action=old, help=argparse.SUPPRESS)
    with pytest.warns(DeprecationWarning, match="--levels is --pyramid_scales now"):
        assert parser.parse_args(["--levels", "3"]).pyramid_scales == 3


def test_settings_of_a_saved_run(tmp_path: Path) -> None:
    run = tiny_run()
    run.settings = {"levels": 3, "protocol": "demo"}
    torch.save(run.state_dict(), tmp_path / "run.pt")
    with pytest.warns(DeprecationWarning, match="levels is pyramid_scales"):
        assert read_run(tmp_path / "run.pt")["settings"] == {"pyramid_scales": 3, "protocol": "demo"}
