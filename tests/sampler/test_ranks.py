"""Under torchrun: the ranks' patches together are those of one process, and all ranks take equally many steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def digests(folder: Path, ranks: int, mix_images: int) -> tuple[set[str], list[str]]:
    """Return the numbers of minibatches that ranks had, and the digests of all their patches."""
    folder.mkdir()
    script = Path(__file__).with_name("ranked.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [*command, str(script), str(folder), str(mix_images)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = [path.read_text().split("\n") for path in folder.glob("*.txt")]
    assert len(written) == ranks
    return {lines[0] for lines in written}, sorted(digest for lines in written for digest in lines[1:])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("mix_images", [1, 2])
def test_ranks_together_see_what_one_sees(tmp_path: Path, mix_images: int) -> None:
    _, whole = digests(tmp_path / "one", 1, mix_images)
    steps, found = digests(tmp_path / "three", 3, mix_images)
    assert len(steps) == 1
    assert found == whole
