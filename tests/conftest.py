"""What all tests share: where the real inputs are, and a run that leaves the machine as it was."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NoReturn

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch looks: several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

_ROOT = Path(__file__).resolve().parents[1]
NEIGHBOURS = (
    *("torchvision", "timm", "transformers", "peft", "accelerate", "lightning"),
    *("rasterio", "tifffile", "tiffslide", "openslide", "zarr", "nibabel", "pydicom"),
    *("monai", "torchio", "sahi", "torchgeo"),
)


collect_ignore_glob = ["checkpoints/files/*"]  # scripts that wrote the files, with the frameworks


class _WithoutNeighbours(pytest.Dir):
    """The folder of tests that need other libraries, where one of them is missing."""

    def collect(self) -> NoReturn:
        missing = ", ".join(name for name in NEIGHBOURS if not importlib.util.find_spec(name))
        pytest.skip(
            f"other libraries are not installed ({missing}): .ci/neighbours has an environment with them"
        )


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if path == _ROOT / "tests" / "neighbours" and not all(map(importlib.util.find_spec, NEIGHBOURS)):
        return _WithoutNeighbours.from_parent(parent, path=path)
    return None  # as pytest has it


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return _ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos, weights and golden values; skips where it is absent."""
    folder = Path(os.environ.get("TRANSFERKIT_SHARED", _ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"real inputs are not at hand: no folder {folder} (set TRANSFERKIT_SHARED)")
    return folder


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device there is: cpu, and cuda where present."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)
