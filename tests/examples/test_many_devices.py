"""The script under torchrun: a rank that is killed ends the run, which goes on in any number of ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.finetune.launch import torchrun
from transferkit.finetune import read_run

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ranks are found in /proc"),
]


def rank_of(pid: str) -> str | None:
    """Return the rank of a process, if torchrun started it."""
    words = Path("/proc", pid, "environ").read_bytes().decode(errors="replace").split("\0")
    return next((word.partition("=")[2] for word in words if word.startswith("RANK=")), None)


def kill_rank(launcher: subprocess.Popen[str], rank: int) -> None:
    children = Path("/proc", str(launcher.pid), "task", str(launcher.pid), "children").read_text().split()
    (pid,) = [pid for pid in children if rank_of(pid) == str(rank)]
    os.kill(int(pid), signal.SIGKILL)


def words(scenes: Path, weights: Path, results: Path) -> list[object]:
    return [
        "--data_dir", scenes, "--weights", weights, "--model", "alexnet-small", "--protocol", "demo", "-b", "cpu",
        "--classes", ",".join(f"digit{i}" for i in range(10)), "--num_workers", 0, "--results", results,
    ]  # fmt: skip


def killed(root: Path, scenes: Path, weights: Path, results: Path, rank: int) -> int:
    """Kill a rank of two after the second epoch; return how many epochs the saved run has."""
    said = ""
    script = root / "examples" / "pascal_voc.py"
    with torchrun(script, *words(scenes, weights, results), "-e", 10_000) as launcher:
        for line in launcher.stdout:
            said += line
            if line.startswith("epoch 2 "):
                break
        begun = time.monotonic()
        kill_rank(launcher, rank)
        said += launcher.stdout.read()
        assert launcher.wait(60) != 0
        took = time.monotonic() - begun
    assert took < 60, took  # a few seconds on a machine that is not crowded
    assert said.count("epoch 1 ") == 1, "both ranks print"
    assert f"rank      : {rank}" in said and "SIGKILL" in said, said[-2000:]
    done = read_run(results / "run.pt")["epoch"]
    assert done >= 2
    return done


@pytest.mark.skipif("TRANSFERKIT_KILLS" not in os.environ, reason="TRANSFERKIT_KILLS is not set")
def test_the_first_rank_killed_ends_the_run(root: Path, scenes: Path, weights: Path, tmp_path: Path) -> None:
    killed(root, scenes, weights, tmp_path / "results", rank=0)


@pytest.mark.slow
def test_another_rank_killed_ends_the_run_which_goes_on_in_any_number_of_ranks(
    root: Path, scenes: Path, weights: Path, tmp_path: Path, call
) -> None:
    script, results = root / "examples" / "pascal_voc.py", tmp_path / "results"
    done, run = killed(root, scenes, weights, results, rank=1), results / "run.pt"
    with torchrun(
        script, "--model_file", run, "-e", done + 1, "--num_workers", 0, "--results", results
    ) as launcher:
        said = launcher.communicate(timeout=200)[0]
    assert launcher.returncode == 0, said[-2000:]
    assert read_run(run)["epoch"] == done + 1
    of_two = json.loads((results / "metrics.json").read_text())

    # One process: the same figures from the same weights, and an epoch more.
    assert call("--model_file", run, "-e", 0, "--results", tmp_path / "alone").status == 0
    assert json.loads((tmp_path / "alone" / "metrics.json").read_text())["result"] == of_two["result"]
    more = call("--model_file", run, "-e", done + 2, "--results", tmp_path / "alone")
    assert more.status == 0, more.err
    assert read_run(tmp_path / "alone" / "run.pt")["epoch"] == done + 2
