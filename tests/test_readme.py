"""The README's two commands are those of the project. (Its Python runs in tests/docs.)"""

from __future__ import annotations

import re
from pathlib import Path


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
    assert test.rstrip().endswith("-m pytest")


def test_the_constraints_name_one_exact_version_each(root: Path) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^+\s]*", pin) for pin in pins), pins
    assert "torch==2.13.0" in pins
