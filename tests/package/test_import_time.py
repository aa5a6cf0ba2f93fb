"""Importing the package costs little more than importing torch, and loads nothing that is optional."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIMIT = 1.2  # times torch alone
ROUNDS = 3

MEASURE = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import transferkit
print((time.process_time() - start) / (middle - start))
"""


def test_importing_takes_less_than_1_2_times_as_long_as_torch_alone(root: Path, tmp_path: Path) -> None:
    # As pip leaves it: compiled. Processor time of one process, so that a crowded machine slows both parts alike.
    shutil.copytree(
        root / "transferkit", tmp_path / "transferkit", ignore=shutil.ignore_patterns("__pycache__")
    )
    compileall.compile_dir(tmp_path / "transferkit", quiet=2)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ratios = []
    for _ in range(ROUNDS):
        answer = subprocess.run(
            [sys.executable, "-c", MEASURE],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=tmp_path,
        )
        ratios.append(float(answer.stdout))
    assert min(ratios) < LIMIT, ratios
