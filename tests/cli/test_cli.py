"""The command line: what it prints, how it exits, and that no expected error shows a traceback."""

from __future__ import annotations

import json
import math
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transferkit
from transferkit.cli import main
from transferkit.display import as_json

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first = {"conv.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.ones(2, 8), "fc.bias": torch.zeros(2)}
    second = {
        "conv.weight": torch.zeros(8, 3, 3, 3),
        "fc.weight": torch.ones(4, 8),
        "extra.bias": torch.zeros(1),
    }
    torch.save({"model": first, "epoch": 3}, tmp_path / "a.pt")
    torch.save(second, tmp_path / "b.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


def test_inspect_shows_layers_totals_and_what_is_beside_them(files: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["inspect", str(files[0])]) == 0
    printed = capsys.readouterr().out
    assert "0  conv  conv    weight 8x3x3x3      float32       216" in printed
    assert "2 layers, 3 tensors, 234 elements" in printed
    assert "beside the tensors: epoch 3" in printed
    assert "sha256 " in printed


def test_inspect_json_is_complete(files: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["inspect", str(files[0]), "--json", "--match", "f*"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "torch" and len(found["sha256"]) == 64
    assert [layer["name"] for layer in found["layers"]] == ["fc"]
    assert found["layers"][0]["tensors"]["weight"] == {"shape": [2, 8], "dtype": "float32"}


@pytest.mark.parametrize("width", [40, 60, 80])
def test_tables_fit_the_terminal(
    width: int, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"encoder.layers.{n}.attention.projection" for n in range(3)]
    torch.save({f"{name}.{short}": torch.zeros(3) for name in names for short in "abcdef"}, tmp_path / "x.pt")
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= max(width, 60) for line in lines if "sha256" not in line and "x.pt" not in line)


def test_diff_tells_what_differs(files: tuple[Path, Path], capsys: Capture) -> None:
    assert main(["diff", *map(str, files)]) == 1
    printed = capsys.readouterr().out
    assert f"only in {files[0]} (1):\n  fc.bias  2" in printed
    assert f"only in {files[1]} (1):\n  extra.bias  1" in printed
    assert "of another shape (1):\n  fc.weight  2x8  4x8" in printed
    assert "the same in shape and dtype: 1 tensors" in printed


def test_diff_of_values(tmp_path: Path, capsys: Capture) -> None:
    model = {"w": torch.tensor([1.0, float("nan"), 3.0]), "same": torch.zeros(2)}
    ema = {"w": torch.tensor([1.0, float("nan"), 3.5]), "same": torch.zeros(2)}
    torch.save({"model": model, "model_ema": ema}, tmp_path / "run.pt")
    run = str(tmp_path / "run.pt")
    assert main(["diff", run, run, "--values"]) == 0
    capsys.readouterr()
    assert main(["diff", run, run, "--key", "model", "--key", "model_ema", "--values"]) == 1
    assert "w  1 of 3  0.5  0.1667" in capsys.readouterr().out
    assert main(["diff", run, run, "--key", "model", "--key", "model_ema", "--values", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["values"][0]["largest"] == 0.5


def strict(text: str) -> Any:
    """Read JSON as a program in another language would: NaN and Infinity are no part of it."""

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refused)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_json_holds_neither_nan_nor_infinity(tmp_path: Path, capsys: Capture, odd: float) -> None:
    torch.save({"w": torch.tensor([1.0, odd])}, tmp_path / "a.pt")
    torch.save({"w": torch.tensor([2.0, 1.0])}, tmp_path / "b.pt")
    for arguments in (
        ["inspect", "a.pt"],
        ["diff", "a.pt", "b.pt", "--values"],
        ["diff", "b.pt", "a.pt", "--values"],
    ):
        main([str(tmp_path / word) if word.endswith(".pt") else word for word in arguments] + ["--json"])
        assert strict(capsys.readouterr().out)


def test_every_kind_of_plain_value_is_json() -> None:
    value = {
        "a": (math.nan, [np.float32("nan"), {"b": -math.inf}]),
        "c": np.int64(3),
        "d": Path("x"),
        "e": None,
    }
    assert strict(as_json(value)) == {"a": [None, [None, {"b": None}]], "c": 3, "d": "x", "e": None}


def test_expected_errors_are_one_line_on_standard_error(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>")
    for arguments in (["inspect", "nowhere.pt"], ["inspect", str(tmp_path / "page.pth")], ["diff", "a", "b"]):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert not out and err.startswith("transferkit: ") and "Traceback" not in err


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    torch.save({"\x1b[31mred.weight": torch.zeros(1)}, tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "diff", "plan"])
def test_help_teaches_by_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "examples:" in printed and "exit status:" in printed


def test_without_a_command_it_says_what_there_is(capsys: Capture) -> None:
    assert main([]) == 2
    assert "transferkit inspect alexnet.pth" in capsys.readouterr().err


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"transferkit {transferkit.__version__}\n"


def test_a_file_that_may_not_be_read_is_no_traceback(tmp_path: Path, capsys: Capture, monkeypatch) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK")

    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x.pt"))

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["inspect", str(tmp_path / "x.pt")]) == 2
    err = capsys.readouterr().err
    assert err == f"transferkit: {tmp_path / 'x.pt'}: cannot be read: Permission denied\n"


def on_a_terminal(arguments: list[str], folder: Path, **environment: str) -> str:
    """Run the command line on a terminal of eighty columns and return what it shows."""
    code = "import sys, transferkit.cli; sys.exit(transferkit.cli.main(sys.argv[1:]))"
    ours, theirs = pty.openpty()
    settings = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    settings |= {"TERM": "xterm", "COLUMNS": "80", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=theirs, cwd=folder, env=settings
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # how a terminal ends on Linux
        pass
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals")
def test_buckets_are_colored_on_a_terminal_alone_and_names_cannot_color(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text("from torch import nn\nbuild = lambda: nn.Sequential(nn.Linear(2, 3))\n")
    torch.save(
        {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3), "\x1b[7mx.w": torch.zeros(1)},
        tmp_path / "a.pt",
    )
    command = ["plan", "a.pt", "nets:build"]
    path = os.pathsep.join([str(root), str(tmp_path)])
    shown = on_a_terminal(command, tmp_path, PYTHONPATH=path)
    assert "\x1b[32mcopied\x1b[0m" in shown and "\\x1b[7mx" in shown and "\x1b[7m" not in shown
    assert "\x1b" not in on_a_terminal(command, tmp_path, PYTHONPATH=path, NO_COLOR="1")
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: Capture) -> None:
    assert main(["completion"]) == 0
    (tmp_path / "weights.pt").touch()

    def complete(*words: str) -> list[str]:
        line = " ".join(f"'{word}'" for word in words)
        code = f"{script}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n_transferkit\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        answer = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        return answer.stdout.split()

    script = capsys.readouterr().out
    commands = ["inspect", "diff", "plan", "convert", "check", "fit", "predict", "join"]
    assert complete("transferkit", "") == [*commands, "completion"]
    assert complete("transferkit", "pl") == ["plan"]
    assert complete("transferkit", "inspect", "wei") == ["weights.pt"]
    assert complete("transferkit", "diff", "a", "b", "--va") == ["--values"]
    assert complete("transferkit", "plan", "a", "b", "--mapping", "str") == ["structure"]


FORGED = "conv\nsha256 0000 (as the author published it)\nnote: verified\x1b]0;owned\x07\u202e"


@pytest.mark.parametrize("as_json", [False, True])
def test_no_name_in_a_file_forges_a_line_or_reaches_the_terminal(
    as_json: bool, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text("from torch import nn\nbuild = lambda: nn.Sequential(nn.Linear(2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = {f"{FORGED}.{FORGED}": torch.zeros(1), f"{FORGED}.w": torch.zeros(2)}
    torch.save({FORGED: {"a.w": torch.zeros(1)}, "model": {**names, f"{FORGED}.extra": 3}}, tmp_path / "a.pt")
    torch.save({"0.weight": torch.zeros(2), f"{FORGED}.w": torch.zeros(1)}, tmp_path / "b.pt")
    a, b = str(tmp_path / "a.pt"), str(tmp_path / "b.pt")
    for command in (
        ["inspect", a],
        ["diff", a, b, "--values"],
        ["plan", a, "nets:build"],
        ["plan", b, "nets:build"],
    ):
        main([*command, *(["--json"] if as_json else [])])
        shown = capsys.readouterr()
        for line in (shown.out + shown.err).splitlines():
            assert line.isprintable(), line
            assert not line.startswith(("note: verified", "sha256 0000")), line


def test_a_name_that_the_terminal_has_no_letters_for_is_spelled_out(tmp_path: Path) -> None:
    torch.save({"卷积.weight": torch.zeros(1), "\ud800.w": torch.zeros(1)}, tmp_path / "a.pt")
    command = [sys.executable, "-m", "transferkit.cli", "inspect", str(tmp_path / "a.pt")]
    shown = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert r"\u5377\u79ef" in shown.stdout and r"\ud800" in shown.stdout
