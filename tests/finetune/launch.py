"""Start a script in several processes, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def torchrun(script: Path, *arguments: object, ranks: int = 2, **popen: object) -> subprocess.Popen[str]:
    """Start ``script`` under torchrun on this machine; its output comes as one stream."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        script,
    ]
    return subprocess.Popen(
        [str(word) for word in (*command, *arguments)],
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen,
    )
