"""Under torchrun: the ranks' patches together are those of one process, and all ranks take equally many steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.sampler.ranked import STREAMS, stream
from tests.sampler.test_multiscale import patches

RANKS = 3


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A folder with what each rank saw: the number of its minibatches, and the digests of its patches."""
    folder = tmp_path_factory.mktemp("seen")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"),
            *(Path(__file__).with_name("ranked.py"), folder),
        ],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("name", STREAMS)
def test_ranks_together_see_what_one_sees(seen: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    whole = patches(stream(name))
    ranks = [path.read_text().split("\n") for path in seen.glob(f"{name}_*.txt")]
    assert len(ranks) == RANKS
    assert len({steps for steps, *_ in ranks}) == 1
    assert sorted(digest for _, *digests in ranks for digest in digests) == sorted(whole)
