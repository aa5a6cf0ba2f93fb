"""The command line: what it prints, how it exits, and that no expected error shows a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from transferkit.cli import main

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


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_help_teaches_by_example(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "examples:" in printed and "exit status:" in printed
