"""Large tensors on huge pages: asked for in time, and a user's own choice is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transferkit.devices import SWITCH
from transferkit.finetune import use_huge_pages

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
from transferkit.finetune import use_huge_pages
use_huge_pages()
import torch
kept = torch.ones(25_000_000)
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))
"""


def test_the_choice_of_the_user_is_kept(monkeypatch):
    monkeypatch.setenv(SWITCH, "0")
    use_huge_pages()
    assert os.environ[SWITCH] == "0"


@pytest.mark.skipif(
    not PAGES.exists() or "[madvise]" not in PAGES.read_text(), reason="the system leaves programs no choice"
)
@pytest.mark.parametrize("wanted", [True, False])
def test_a_large_tensor_is_on_huge_pages(wanted):
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    program = PROGRAM if wanted else PROGRAM.replace("use_huge_pages()\n", "", 1)
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    kilobytes = int(found.stdout)
    assert (kilobytes > 50_000) == wanted
