"""Damaged files of every format end in a checkpoint or in a ``CheckpointError``, and soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.checkpoints.mutated_files import SECONDS, mutated_files, originals, outcome

COUNT = int(os.environ.get("TRANSFERKIT_MUTATIONS", "650"))


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    outcomes = set()
    for label, suffix, content in mutated_files(COUNT, seed=13):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        begun = time.process_time()
        try:
            outcomes.add(outcome(path))
        except Exception as error:
            raise AssertionError(f"{label}: {error!r}") from error
        assert time.process_time() - begun < SECONDS, label
    assert outcomes == {"read", "refused"}


def test_the_undamaged_files_are_read(tmp_path: Path) -> None:
    for label, (suffix, content) in originals().items():
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        assert outcome(path) == ("refused" if label == "index" else "read"), label
