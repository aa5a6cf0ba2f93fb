"""A user's file is checked strictly against the package's own types, which it finds by ``py.typed``."""

from __future__ import annotations

import re
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed: it comes with the extra dev")

USE = """\
from pathlib import Path

import torch
from torch import nn

import transferkit as tk
from transferkit.datasets import VOCDataset
from transferkit.labeling import OverlapRule
from transferkit.layers import Layer


def wide(index: int, layer: Layer) -> bool:
    return index > 0 and layer.kind == "conv"


def move(path: Path, model: nn.Module) -> dict[str, object]:
    checkpoint = tk.read_checkpoint(path, device="cpu")
    transfer = tk.WeightTransfer(checkpoint, select=tk.before("fc") & wide, handlers=["input_channels"])
    print(transfer.plan(model).mismatched)
    report = transfer.apply(model)
    frozen: tuple[str, ...] = tk.freeze(model, tk.by_kind("norm", nn.Conv2d))
    groups = report.parameter_groups(model, transferred={"lr": 1e-4}, new={"lr": 1e-2})
    torch.optim.SGD(groups, momentum=0.9)
    print(frozen)
    return report.to_dict()


def score(model: nn.Module, folder: str) -> float:
    data = VOCDataset(folder, image_set="test", class_names=("cat", "dog"))
    sampler = tk.MultiscaleSampler(data, rule=OverlapRule(several="largest"), mode="test", patch_size=64)
    scorer = tk.ImageScorer(len(data), 3, exponent=5)
    for batch in sampler:
        scorer.add_batch(model(batch.pixels.float()).softmax(1), batch.image_index, batch.boxes)
    truth = data.presence()
    return tk.evaluate(scorer.compute(), truth.present, class_names=data.class_names).mean_ap()


tk.ImageScorer(num_images="two", num_classes=3)  # wrong: arg-type
tk.MultiscaleSampler([], mode="trian")  # wrong: arg-type
tk.read_checkpoint("x.pt").layres  # wrong: attr-defined
tk.average_precision(torch.zeros(3))  # wrong: call-arg
"""


def test_a_users_file_passes_and_its_mistakes_are_found(root: Path, tmp_path: Path) -> None:
    # An environment of its own that finds the package as an installed one, and everything else where it is.
    venv.create(tmp_path / "venv")
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (packages / "found.pth").write_text("\n".join([str(root), *site.getsitepackages()]))
    (tmp_path / "use.py").write_text(USE)
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context",
         "--cache-dir", str(root / ".mypy_cache" / "user"), "--python-executable", str(tmp_path / "venv/bin/python"), "use.py"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    found = re.findall(r"^use.py:(\d+): error: .*\[([\w-]+)\]$", answer.stdout, re.MULTILINE)
    wanted = [
        (str(number), line.partition("# wrong: ")[2])
        for number, line in enumerate(USE.splitlines(), start=1)
        if "# wrong: " in line
    ]
    assert found == wanted, answer.stdout + answer.stderr
