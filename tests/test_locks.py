"""A folder has one writer: the second is told who the first is, and no job that is gone keeps it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.finetune.launch import torchrun
from transferkit import locks
from transferkit.errors import OutputError
from transferkit.locks import LOCK, lock_folder, this_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts and kills processes as POSIX does")

HOLDER = """
import sys
from pathlib import Path
from transferkit.locks import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""
CROWD = """
import os, sys, random
from pathlib import Path
from transferkit.errors import OutputError
from transferkit.locks import lock_folder
folder, log = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for turn in range(30):
    with lock_folder(folder, wait=60):
        os.write(log, b"in %d\\n" % os.getpid())
        if turn == 20 and sys.argv[3] == "dies":
            os._exit(9)
        os.write(log, b"out %d\\n" % os.getpid())
"""
RANKS = """
import sys, torch
from transferkit.errors import OutputError
from transferkit.locks import lock_folder
torch.distributed.init_process_group("gloo")
try:
    with lock_folder(sys.argv[1]):
        print("held by rank", torch.distributed.get_rank(), flush=True)
        torch.distributed.barrier()
except OutputError as error:
    print(f"refused {'holder.py' in str(error)}", flush=True)
torch.distributed.destroy_process_group()
"""


@pytest.fixture
def start(root: Path, tmp_path: Path):
    """Start a program in a process of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(text: str, *arguments: object, name: str = "holder.py") -> subprocess.Popen[str]:
        (tmp_path / name).write_text(text)
        command = [sys.executable, str(tmp_path / name), *map(str, arguments)]
        pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def held(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert process.stdout.readline() == "held\n"
    return process


def forged(folder: Path, job: locks._Job, age: float = 0.0) -> Path:
    """Leave the lock of another job, silent for ``age`` seconds."""
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(locks.asdict(job)))
    os.utime(folder / LOCK, (time.time() - age,) * 2)
    return folder


def test_the_second_job_is_told_of_the_first_at_once_and_comes_in_when_that_has_ended(start, tmp_path) -> None:
    folder = tmp_path / "results"
    first = held(start(HOLDER, folder))
    words = rf"results is in use by another job, holder\.py \(process {first.pid} on .*, since 20.*wait until"
    with pytest.raises(OutputError, match=words), lock_folder(folder):
        pass
    threading.Timer(0.5, first.stdin.close).start()
    with lock_folder(folder, wait=30):
        assert first.wait() == 0
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_killed_job_is_taken_over_at_once(start, tmp_path) -> None:
    first = held(start(HOLDER, tmp_path / "results"))
    first.kill()  # and not waited for: a process that nobody has buried is gone all the same
    time.sleep(0.3)
    with lock_folder(tmp_path / "results"):
        pass
    assert list((tmp_path / "results").iterdir()) == []


def test_a_process_number_that_is_another_s_now_holds_nothing(tmp_path: Path) -> None:
    own = locks._Job.own()
    with pytest.raises(OutputError), lock_folder(forged(tmp_path / "alive", own)):
        pass
    earlier = replace(own, process=replace(this_process(), started="1"))
    with lock_folder(forged(tmp_path / "reused", earlier)):
        pass


@pytest.mark.parametrize("text", [None, "", "{", "[" * 50_000, '{"process": {"pid": -1}}'])
def test_what_cannot_be_looked_at_is_gone_when_it_has_been_silent_for_long(
    tmp_path: Path, text: str | None
) -> None:
    """A job of another machine, or a lock that names none."""
    far = replace(locks._Job.own(), process=replace(this_process(), machine="another"), host="host\x1b7")
    folder = forged(tmp_path / "results", far, age=locks.SILENCE - 60)
    if text is not None:
        (folder / LOCK).write_text(text)
        os.utime(folder / LOCK, (time.time() - locks.SILENCE + 60,) * 2)
    with (
        pytest.raises(OutputError, match=rf"after {locks.SILENCE:.0f} s, or delete .*{LOCK}") as told,
        lock_folder(folder),
    ):
        pass
    assert str(told.value).isprintable()
    os.utime(folder / LOCK, (time.time() - locks.SILENCE - 1,) * 2)
    with lock_folder(folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_job_gives_signs_of_life_while_it_holds_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.05)
    with lock_folder(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        time.sleep(0.5)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < 5


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_no_lock_is_left_where_a_block_ends_by_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), lock_folder(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some strike in a callback
def test_no_lock_is_left_whenever_the_job_is_interrupted(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(400):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + 5e-6 * turn)
                with lock_folder(tmp_path, wait=5):
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            with lock_folder(tmp_path, wait=5):
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    assert list(tmp_path.iterdir()) == []


def test_of_many_jobs_some_of_which_die_never_two_are_inside(start, tmp_path: Path) -> None:
    folder, log = tmp_path / "results", tmp_path / "log"
    crowd = [start(CROWD, folder, log, end, name="crowd.py") for end in ("lives", "dies", "dies", "lives")]
    assert sorted(job.wait() for job in crowd) == [0, 0, 9, 9]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 * (2 * 30 + 2 * 20) + 2
    inside, dead = None, 0
    for word, job in lines:
        if word == "in":
            dead += inside is not None  # it never came out
            inside = job
        else:
            assert inside == job
            inside = None
    assert dead == 2 - (inside is not None)
    with lock_folder(folder):
        pass
    assert list(folder.iterdir()) == []


def test_all_ranks_of_a_job_share_its_lock_and_are_refused_together(start, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    folder = tmp_path / "results"
    together = torchrun(tmp_path / "ranks.py", folder).communicate(timeout=120)[0]
    assert together.count("held by rank") == 2, together
    held(start(HOLDER, folder))
    assert torchrun(tmp_path / "ranks.py", folder).communicate(timeout=120)[0].count("refused True") == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write .*file"), lock_folder(tmp_path / "file" / "results"):
        pass
