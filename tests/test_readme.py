"""The README's two commands are those of the project. (Its Python runs in tests/docs.)"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def blocks(root: Path, language: str) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_readme_s_commands_make_their_own_environment_and_keep_to_the_constraints(root: Path) -> None:
    run, test = blocks(root, "sh")[:2]
    for command in (run, test):
        assert command.count("\n") == 1, "one line to paste"
        assert command.startswith("python3 -m venv .venv && ")
        assert "-c constraints.txt" in command
    assert run.rstrip().endswith("examples/pascal_voc.py --demo")
    assert test.rstrip().endswith("-m pytest -n auto")


def test_the_constraints_name_one_exact_version_each(root: Path) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^+\s]*", pin) for pin in pins), pins
    assert "torch==2.13.0" in pins


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no photo shows")  # twenty photos do not show all classes
def test_fifteen_lines_from_photos_to_predictions(
    root: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As printed, but on twenty photos each, at one pyramid scale."""
    pytest.importorskip("efficientnet_lite_pytorch")
    (block,) = [found for found in blocks(root, r"python[^\n]*") if "SceneClassifier(" in found]
    fewer = {
        'open_photos("voc")': 'open_photos("voc", max_images=20)',
        "tk.RECOMMENDED)": "replace(tk.RECOMMENDED, pyramid_scales=(1,)))",
    }
    for printed, run in fewer.items():
        assert printed in block
        block = block.replace(printed, run)
    first, later, second = block.partition("# Later, in another program:\n")
    assert later and len([line for line in block.splitlines() if line and not line.startswith("#")]) <= 15
    (tmp_path / "voc").symlink_to(shared / "voc")
    (tmp_path / "holiday").mkdir()
    for photo in sorted((shared / "voc/VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[:3]:
        (tmp_path / "holiday" / photo.name).symlink_to(photo)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"replace": dataclasses.replace}
    exec(compile(first, "README.md", "exec"), names)
    code = f"import torch, transferkit as tk\n{second}\ntorch.save([again.ids, again.scores], 'later.pt')"
    subprocess.run([sys.executable, "-c", code], check=True)
    ids, scores = torch.load("later.pt", weights_only=True)
    predictions = names["predictions"]
    assert tuple(ids) == predictions.ids and len(ids) == 3
    assert torch.equal(scores, predictions.scores)
