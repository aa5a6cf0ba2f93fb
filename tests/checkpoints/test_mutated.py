"""Damaged files of every format end in what they hold or in an error of the library's own, and soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.checkpoints.mutated_files import SECONDS, insides, mutated_files, originals, outcome, write_beside

COUNT = int(os.environ.get("TRANSFERKIT_MUTATIONS", "900"))


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = set()
    write_beside(tmp_path / "file.index")
    for label, suffix, content in mutated_files(COUNT, seed=13):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        begun = time.process_time()
        try:
            outcomes.add(outcome(path, run="run" in label))
        except Exception as error:
            raise AssertionError(f"{label}: {error!r}") from error
        assert time.process_time() - begun < SECONDS, label
    assert outcomes == {"read", "refused"}


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    write_beside(tmp_path / "file.index")
    for label, (suffix, content) in originals().items():
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        assert outcome(path, run=label == "run") == ("refused" if label == "index" else "read"), label


def test_what_is_inside_an_archive_is_put_back_as_it_was(tmp_path: Path) -> None:
    write_beside(tmp_path / "file.index")
    for label, (suffix, inner, wrap) in insides().items():
        path = tmp_path / f"file{suffix}"
        path.write_bytes(wrap(inner))
        assert outcome(path, run="run" in label) == "read", label
