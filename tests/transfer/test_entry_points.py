"""Another package adds a reader and a handler by entry points, without this one knowing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = '''
"""A package that knows a format of one number a line, and a handler that turns weights round."""

import torch

from transferkit.checkpoints import Contents, register_reader
from transferkit.transfer import register_handler


@register_reader("numbers", suffixes=(".numbers",))
def read_numbers(path, options):
    values = [float(line) for line in path.read_text().split()]
    return Contents({"fc.weight": torch.tensor([values])}, notes=("read by another package",))


@register_handler("turn_round")
def turn_round(source, target):
    weight = source.tensors["weight"]
    return {"weight": weight.mT} if weight.mT.shape == target.tensors["weight"].shape else None
'''
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
USE = """
import torch
from torch import nn
from transferkit.transfer import WeightTransfer
model = nn.ModuleDict({"fc": nn.Linear(1, 3, bias=False)})
report = WeightTransfer("three.numbers", handlers=["turn_round"]).apply(model)
print(model["fc"].weight.flatten().tolist(), report.adapted, report.origin.notes)
again = WeightTransfer("three.numbers", on_mismatch="adapt").apply(model)
print(again.entries[0].handler)
"""


def install(folder: Path, name: str, module: str, points: str) -> None:
    """Lay a package out as pip installs it: the module, and its metadata beside it."""
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA.format(name=name))
    (info / "RECORD").write_text(f"{name}.py,,\n{info.name}/METADATA,,\n{info.name}/entry_points.txt,,\n")
    (info / "entry_points.txt").write_text(points)


def run(code: str, site: Path, cwd: Path, root: Path) -> subprocess.CompletedProcess[str]:
    setup = f"import sys; sys.path[:0] = [{str(site)!r}, {str(root)!r}]\n"
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, cwd=cwd)


def test_a_package_adds_a_reader_and_a_handler(tmp_path, root):
    site = tmp_path / "site"
    site.mkdir()
    points = {"readers": "numbers = numbers_format", "handlers": "turn_round = numbers_format"}
    sections = "".join(f"[transferkit.{group}]\n{line}\n" for group, line in points.items())
    install(site, "numbers_format", MODULE, sections)
    (tmp_path / "three.numbers").write_text("1\n2\n3\n")
    answer = run(USE, site, tmp_path, root)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == [
        "[1.0, 2.0, 3.0] ('fc.weight',) ('read by another package',)",
        "turn_round",
    ]


@pytest.mark.parametrize("named", [True, False])
def test_a_handler_that_cannot_be_loaded_is_named(tmp_path, root, named):
    (site := tmp_path / "site").mkdir()
    install(
        site, "broken", "import nowhere_to_be_found\n", "[transferkit.handlers]\nshatter = broken:shatter\n"
    )
    options = 'handlers=["shatter"]' if named else 'on_mismatch="adapt"'
    code = f"""
from torch import nn
from transferkit.transfer import WeightTransfer
WeightTransfer(nn.Linear(1, 2), {options}).apply(nn.Linear(1, 3))
"""
    answer = run(code, site, tmp_path, root)
    assert (
        "ArgumentError: handler 'shatter' (broken:shatter) cannot be loaded: No module named" in answer.stderr
    )


def test_an_unknown_handler_is_answered_with_the_nearest():
    from torch import nn

    from transferkit.errors import ArgumentError
    from transferkit.transfer import WeightTransfer

    with pytest.raises(ArgumentError, match="no handler named 'input_chanels'; did you mean 'input_channels'"):
        WeightTransfer(nn.Linear(1, 2), handlers=["input_chanels"]).plan(nn.Linear(1, 2))
    with pytest.raises(ArgumentError, match="a handler must be a name or a callable"):
        WeightTransfer(nn.Linear(1, 2), handlers=[3]).plan(nn.Linear(1, 2))
    with pytest.raises(ArgumentError, match="on_mismatch must be 'error' or 'adapt', got 'skip'"):
        WeightTransfer(nn.Linear(1, 2), on_mismatch="skip").plan(nn.Linear(1, 2))
