"""What all tests share: where the real inputs are, and a run that leaves the machine as it was."""

from __future__ import annotations

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch looks: several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

_ROOT = Path(__file__).resolve().parents[1]


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
