"""Damaged photos, annotations, COCO files and archives end in what they hold or in the library's own errors."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.benchmarks.damaged_data import KINDS, SECONDS, Damaged, outcome

COUNT = int(os.environ.get("TRANSFERKIT_MUTATIONS", "400"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_data_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    damaged, outcomes = Damaged(tmp_path, seed=13), set()
    for number in range(COUNT):
        begun = time.process_time()
        try:
            outcomes.add(outcome(damaged, kind))
        except Exception as error:
            raise AssertionError(f"{kind} #{number}: {error!r}") from error
        assert time.process_time() - begun < SECONDS, f"{kind} #{number}"
    assert outcomes == {"read", "refused"}
