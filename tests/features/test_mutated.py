"""Whatever bytes a cache's files hold, its features are right or refused, and right after the next fill."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.benchmarks.mutated_caches import Damaged

COUNT = int(os.environ.get("TRANSFERKIT_MUTATIONS", "200"))


def test_damaged_caches_are_mended(tmp_path: Path) -> None:
    damaged, dice, outcomes = Damaged(tmp_path), random.Random(13), set()
    for number in range(COUNT):
        names = damaged.damage(dice)
        try:
            outcomes.add(damaged.outcome())
        except Exception as error:
            raise AssertionError(f"#{number}, {names}: {error!r}") from error
        damaged.mend()
    assert outcomes == {"read", "refused and mended"}
