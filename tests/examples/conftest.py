"""The bundled script as a module, and small scenes for it to work on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from transferkit.datasets import DEMO_CLASSES, write_demo_devkit
from transferkit.finetune import small_alexnet


class Outcome(NamedTuple):
    """What a call of the script came to."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def script(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pascal_voc", root / "examples" / "pascal_voc.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pascal_voc"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_demo_devkit(folder, num_train=10, num_test=6)
    return folder


@pytest.fixture(scope="session")
def weights(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small AlexNet, untrained."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(small_alexnet(10).state_dict(), path)
    return path


@pytest.fixture
def call(script: ModuleType, scenes: Path, weights: Path, tmp_path: Path, capsys) -> Callable[..., Outcome]:
    """Call the script on the scenes; what ``arguments`` names replaces the defaults."""

    def run(*arguments: object, plain: bool = False) -> Outcome:
        defaults = [
            "--data_dir", scenes, "--weights", weights, "--model", "alexnet-small", "--protocol", "demo",
            "--classes", ",".join(DEMO_CLASSES), "--num_workers", 0, "--results", tmp_path / "results",
        ]  # fmt: skip
        status = script.main([str(word) for word in (*([] if plain else defaults), *arguments)])
        return Outcome(status, *capsys.readouterr())

    return run
