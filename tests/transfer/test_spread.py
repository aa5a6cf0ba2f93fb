"""Targets that fully_shard or tensor parallelism spread over ranks: each writes its part, all of them or none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from tests.transfer import spread

save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="no gloo ranks on this machine",
)


def _run(ranks: int, source: Path, *tasks: str) -> str:
    script = Path(spread.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, str(script), str(source), *tasks],
        cwd=script.parents[2],
        env={**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(Path(f"{source}.{rank}.done").exists() for rank in range(ranks))
    return done.stdout


@pytest.mark.parametrize(("ranks", "tasks"), [(2, ("fill", "fault", "flat")), (4, ("fill",))])
def test_every_rank_writes_its_part_or_none_does(tmp_path, ranks, tasks):
    torch.manual_seed(1)
    tensors = spread.net().state_dict()
    shards = {
        f"{part}.safetensors": {k: v for k, v in tensors.items() if (k < "2") == (part == "a")} for part in "ab"
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, part in shards.items():
        save_file(part, folder / name)
    weight_map = {key: name for name, part in shards.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _run(ranks, folder, *tasks)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what of a file was touched")
def test_a_rank_reads_no_more_than_its_part(tmp_path):
    file = tmp_path / "large.safetensors"
    save_file(nn.Sequential(nn.Linear(1024, 8192, bias=False)).state_dict(), file)
    touched = [int(count) for count in re.findall(r"touched (\d+)", _run(2, file, "read"))]
    assert len(touched) == 2
    assert all(0 < count < 0.6 * file.stat().st_size for count in touched)
