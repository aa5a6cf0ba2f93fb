"""Under torchrun: the ranks' patches together are those of one process, and all ranks take equally many steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from test_multiscale import Scenes, patches, sampler  # noqa: E402


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize(("ranks", "mix_images"), [(2, 1), (3, 2)])
def test_ranks_together_see_what_one_sees(tmp_path: Path, ranks: int, mix_images: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [str(Path(__file__).with_name("ranked.py")), str(tmp_path), str(mix_images)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    written = [path.read_text().split("\n") for path in sorted(tmp_path.glob("*.txt"))]
    assert len(written) == ranks
    assert len({lines[0] for lines in written}) == 1
    assert sorted(digest for lines in written for digest in lines[1:]) == patches(
        sampler(Scenes(7), mix_images=mix_images)
    )
