"""The bundled script is stopped, killed, started twice, or runs out of disk: nothing is lost, and it says how to go on."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from transferkit.datasets import DEMO_CLASSES
from transferkit.finetune import read_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="sends signals as POSIX does"),
]
KILLS = int(os.environ.get("TRANSFERKIT_KILLS", "1"))
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(root: Path, scenes: Path, weights: Path, tmp_path: Path):
    """Start the script in a process of its own, in ``tmp_path``; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*words: object, plain: bool = False, **popen: object) -> subprocess.Popen[str]:
        fresh = [
            "--data_dir", scenes, "--weights", weights, "--model", "alexnet-small", "--protocol", "demo",
            "--classes", ",".join(DEMO_CLASSES), "--max_train_imgs", 2, "--num_workers", 0,
        ]  # fmt: skip
        command = [sys.executable, root / "examples" / "pascal_voc.py", *([] if plain else fresh), *words]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        how = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        how["preexec_fn"] = heed_ctrl_c
        started.append(subprocess.Popen([str(word) for word in command], text=True, **{**how, **popen}))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def heed_ctrl_c() -> None:
    """A job that a shell put into the background ignores it, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(process: subprocess.Popen[str], words: str) -> None:
    """Read what a script prints until a line begins with ``words``."""
    for line in process.stdout:
        if line.startswith(words):
            return
    raise AssertionError(f"it ended before {words!r}: {process.stderr.read()}")


def children(process: subprocess.Popen[str]) -> list[int]:
    own = f"/proc/{process.pid}/task/{process.pid}/children"
    return [int(pid) for pid in Path(own).read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_ctrl_c_says_in_one_line_how_to_go_on_and_that_goes_on(start: Start, tmp_path: Path) -> None:
    first = start("-e", 10_000, "--results", "my results", "--num_workers", 2, start_new_session=True)
    until(first, "epoch 2")
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, told = first.communicate(timeout=60)
    assert first.returncode == 130
    assert told.strip().count("\n") == 0, told
    assert left_in(tmp_path) == ["run.pt"]
    saved = read_run(tmp_path / "my results" / "run.pt")["epoch"]
    assert saved >= 2
    command = shlex.split(told.partition("go on with: ")[2])
    assert command[0].startswith("python")
    resumed = start(*command[2:], "-e", saved + 1, plain=True)
    assert resumed.communicate(timeout=120)[1] == ""
    assert resumed.returncode == 0
    assert read_run(tmp_path / "my results" / "run.pt")["epoch"] == saved + 1


def test_ctrl_c_before_the_first_epoch_is_saved_points_to_no_other_job_s_run(
    start: Start, tmp_path: Path
) -> None:
    start("-e", 1).communicate(timeout=120)
    second = start("-e", 10_000, "--serialize", 0)
    until(second, "epoch 1")
    second.send_signal(signal.SIGINT)
    _, told = second.communicate(timeout=60)
    assert "no epoch is saved; begin anew with: " in told
    assert "--model_file" not in told


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_sigterm_leaves_no_worker_no_lock_and_the_last_epoch(start: Start, tmp_path: Path) -> None:
    process = start("-e", 10_000, "--num_workers", 2)
    until(process, "epoch 2")
    workers = children(process)
    assert workers
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(alive(pid) for pid in workers)
    left = read_run(tmp_path / "results" / "run.pt")["epoch"]
    assert left >= 2
    assert left_in(tmp_path / "results") in (
        ["run.pt"],
        ["run.pt", f"run_{left}.pt"],
    )  # stopped within the next epoch


def test_a_second_job_in_a_results_folder_is_refused_at_the_start(start: Start, tmp_path: Path) -> None:
    first = start("-e", 10_000)
    until(first, "epoch 1")
    for words in ((), ("--results", "elsewhere", "--save_path", "results/run.pt")):
        second = start("-e", 1, *words)
        out, told = second.communicate(timeout=120)
        assert second.returncode == 2
        assert f"in use by another job, pascal_voc.py (process {first.pid} on " in told
        assert told.count("\n") == 1
        assert "epoch 1" not in out
    first.kill()
    first.wait()
    third = start("-e", 1)
    assert third.communicate(timeout=120)[1] == ""
    assert third.returncode == 0


def test_every_kill_leaves_a_run_that_goes_on(start: Start, tmp_path: Path) -> None:
    """``TRANSFERKIT_KILLS=50 pytest -k every_kill tests/examples``: a run of its own is killed in tests/finetune."""
    run, dice, epochs = tmp_path / "results" / "run.pt", random.Random(0), [0]
    for _ in range(KILLS):
        resumed = ("--model_file", run, "--num_workers", 0)
        words = resumed if run.exists() else ("--max_train_imgs", 1, "--history", 2)
        process = start("-e", 10_000, *words, plain=run.exists())
        until(process, "epoch")
        time.sleep(dice.uniform(0, 0.5))
        process.kill()
        process.communicate()
        epochs.append(read_run(run)["epoch"])
    assert epochs == sorted(epochs)
    assert epochs[-1] >= KILLS
    last = start("--model_file", run, "-e", epochs[-1] + 1, "--num_workers", 0, plain=True)
    assert last.communicate(timeout=120)[1] == ""
    names = left_in(tmp_path / "results")
    assert not [name for name in names if name.endswith(".part") or "lock" in name]
    kept = [name for name in names if name.endswith(".pt")]
    assert kept == sorted({"run.pt", f"run_{epochs[-1]}.pt", f"run_{epochs[-1] + 1}.pt"})


FULL = """
mount -t tmpfs -o size={size} tmpfs {folder} || exit 77
{command} > {log} 2> {errors}
echo $? > {log}.status
find {folder} -type f -printf '%f %s\\n' > {log}.left
cp -r {folder} {log}.copy
"""


def on_a_small_disk(tmp_path: Path, size: str, command: list[object]) -> tuple[int, str, list[str], Path]:
    """Run a command with a small disk at ``tmp_path/small``; return its status, errors, the files left, and a copy."""
    (tmp_path / "small").mkdir(exist_ok=True)
    log = tmp_path / f"log{len(list(tmp_path.glob('log*.status')))}"
    text = FULL.format(
        size=size,
        folder=tmp_path / "small",
        command=shlex.join(map(str, command)),
        log=log,
        errors=f"{log}.errors",
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", text], cwd=tmp_path, capture_output=True, text=True)
    if done.returncode in (1, 77):
        pytest.skip(f"a disk of its own needs root: {done.stderr}")
    left = Path(f"{log}.left").read_text().splitlines()
    status, errors = Path(f"{log}.status").read_text(), Path(f"{log}.errors").read_text()
    return int(status), errors, left, Path(f"{log}.copy")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a disk of its own")
@pytest.mark.parametrize("size, words", [("1500k", ()), ("5m", ("--history", 9)), ("300k", ("--demo",))])
def test_a_full_disk_is_told_in_one_line_and_nothing_is_left_that_fills_it(
    start: Start, tmp_path: Path, root: Path, size: str, words: tuple[object, ...]
) -> None:
    given = start("-e", 30, "--results", tmp_path / "small", *words)
    given.kill()
    status, errors, left, copy = on_a_small_disk(tmp_path, size, given.args)
    told = errors.splitlines()[-1]
    assert status == 2, errors
    assert told.startswith(f"pascal_voc.py: error: cannot write {tmp_path / 'small'}/"), errors
    assert told.endswith("No space left on device"), errors
    assert "Traceback" not in errors
    assert not [name for name in left if ".part" in name or ".lock" in name or ".jpg" in name]
    for run in copy.glob("run*.pt"):
        assert read_run(run)["epoch"] >= 1
