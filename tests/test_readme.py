"""What the README prints runs: its Python as it stands, and its two commands are those of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def blocks(root: Path, language: str) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_python_in_the_readme_runs_in_order(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, code in enumerate(blocks(root, "python"), start=1):
        exec(compile(code, f"README.md, block {number}", "exec"), names)
    assert number == 2


def test_the_readme_s_commands_make_their_own_environment_and_keep_to_the_constraints(root: Path) -> None:
    run, test = blocks(root, "sh")[:2]
    for command in (run, test):
        assert command.count("\n") == 1, "one line to paste"
        assert command.startswith("python3 -m venv .venv && ")
        assert "-c constraints.txt" in command
    assert run.rstrip().endswith("examples/pascal_voc.py --demo")
    assert test.rstrip().endswith("-m pytest")


def test_the_constraints_name_one_exact_version_each(root: Path) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^+\s]*", pin) for pin in pins), pins
    assert "torch==2.13.0" in pins
