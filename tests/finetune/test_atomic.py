"""A file is written whole or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transferkit.errors import OutputError
from transferkit.files import remove_parts_of_the_dead
from transferkit.finetune import require_writable, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"


KILLED = """
import os, sys
from transferkit.files import write_atomically
def write(file):
    file.write(b"half of the n")
    file.flush()
    os._exit(9)
write_atomically(sys.argv[1], write)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_job(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "run [1].pt"
    assert subprocess.run([sys.executable, "-c", KILLED, path], cwd=root).returncode == 9
    assert [child.suffix for child in tmp_path.iterdir()] == [".part"]
    require_writable(path)
    assert list(tmp_path.iterdir()) == []


def test_no_writer_touches_the_part_of_another(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    names = set()

    def write(file) -> None:
        names.update(child.name for child in tmp_path.iterdir())
        require_writable(path)  # as a job does that starts just now
        remove_parts_of_the_dead(tmp_path)
        file.write(b"outer")

    def outer(file) -> None:
        write_atomically(path, write)
        write(file)

    write_atomically(path, outer)
    assert path.read_bytes() == b"outer"
    assert len(names) == 3  # two parts, and the file
    assert [child.name for child in tmp_path.iterdir()] == ["run.pt"]


def test_the_part_of_another_machine_is_left_alone_for_an_hour(tmp_path: Path) -> None:
    other, user_s = tmp_path / "run.pt.0123456789ab-1-2-0.part", tmp_path / "movie.mkv.part"
    for path in (other, user_s):
        path.touch()
    remove_parts_of_the_dead(tmp_path)
    assert other.exists()
    for path in (other, user_s):
        os.utime(path, (0, 0))
    remove_parts_of_the_dead(tmp_path)
    assert list(tmp_path.iterdir()) == [user_s]


SAVER = """
import sys
import torch
from tests.finetune.tiny import tiny_run
from transferkit.files import require_writable
from transferkit.finetune import read_run
path = sys.argv[1]
run = tiny_run(hidden=1000)
for _ in range(15):
    require_writable(path)
    run.save(path)
    read_run(path)
print("saved all")
"""


def test_three_jobs_that_save_one_file_all_succeed_and_leave_it_whole(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "run.pt"
    command, pipe = [sys.executable, "-c", SAVER, str(path)], subprocess.PIPE
    jobs = [subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for job in jobs:
        out, err = job.communicate()
        assert (out, job.returncode) == ("saved all\n", 0), err
    assert [child.name for child in tmp_path.iterdir()] == ["run.pt"]


# A fault of the disk: one line with path and reason, the old file whole, nothing that fills the disk.

FULL = """
import resource, sys
import numpy as np, torch
from transferkit.files import write_atomically
from transferkit.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writers = {
    "bytes": lambda file: file.write(bytes(1_000_000)),
    "torch": lambda file: torch.save({"weights": torch.zeros(1_000_000)}, file),
    "numpy": lambda file: np.save(file, np.zeros(1_000_000)),
    "figure": lambda file: __import__("PIL.Image").Image.effect_noise((999, 999), 99).save(file, format="png"),
}
try:
    write_atomically(sys.argv[1], writers[sys.argv[2]])
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the platform has no limit of a file's size")
@pytest.mark.parametrize("writer", ["bytes", "torch", "numpy", "figure"])
def test_a_fault_of_the_disk_is_told_with_path_and_reason(tmp_path: Path, root: Path, writer: str) -> None:
    path = tmp_path / "run.pt"
    path.write_bytes(b"old")
    command = [sys.executable, "-c", FULL, str(path), writer]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert re.fullmatch(
        rf"cannot write {re.escape(str(path))}: (File too large|.* requested and .* written)\n", done.stdout
    ), done
    assert [child.read_bytes() for child in tmp_path.iterdir()] == [b"old"]


def test_an_interrupt_that_a_writer_made_an_error_of_is_an_interrupt(tmp_path: Path) -> None:
    class Interrupted:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    def write(file) -> None:
        try:
            torch.save({"weights": torch.zeros(9), "other": Interrupted()}, file)
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904 - as torch's writer of archives does

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "run.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_was_handled_before_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    def write(file) -> None:
        raise ValueError("mine")

    try:
        raise OSError("earlier")
    except OSError:
        with pytest.raises(ValueError, match="mine"):
            write_atomically(tmp_path / "run.pt", write)


def test_a_path_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    assert require_writable(tmp_path / "new" / "run.pt") == tmp_path / "new" / "run.pt"
    assert list((tmp_path / "new").iterdir()) == []


def test_a_path_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/run.pt: .*choose another path"):
        require_writable(tmp_path / "file" / "run.pt")
    with pytest.raises(OutputError, match="cannot write .*: .*is a folder"):
        require_writable(tmp_path)
