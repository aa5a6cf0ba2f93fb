from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from transferkit import registry as plug_ins
from transferkit.checkpoints import Contents, read_checkpoint, register_reader, unregister_reader
from transferkit.checkpoints.registry import _FORMATS
from transferkit.errors import ArgumentError, CheckpointError

# What the entry point of another package leads to: importing it registers a reader.


def install(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    monkeypatch.setattr(plug_ins, "entry_points", lambda group: entries)
    forget()


def forget() -> None:
    """Let the next look-up ask for entry points anew."""
    for name in ("announced", "_all_loaded"):
        vars(_FORMATS).pop(name, None)


@pytest.fixture(autouse=True)
def fresh_entry_points() -> Any:
    yield
    forget()


def test_a_reader_of_another_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_number_plugin.py").write_text(
        "import torch\n"
        "from transferkit.checkpoints import Contents, register_reader\n"
        "@register_reader('one number', suffixes=('.num',))\n"
        "def read(path, options):\n"
        "    return Contents({'fc.bias': torch.tensor(float(path.read_text()))})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    install(monkeypatch, EntryPoint("one number", "one_number_plugin", _FORMATS.group))
    (tmp_path / "x.num").write_text("2.5")
    try:
        assert read_checkpoint(tmp_path / "x.num")["fc"].tensors["bias"] == 2.5
    finally:
        unregister_reader("one number")


def test_a_broken_plug_in_is_reported_and_the_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, EntryPoint("broken", "no_such_module_at_all", _FORMATS.group))
    torch.save({"fc.weight": torch.ones(1, 1)}, tmp_path / "x.pt")
    with pytest.warns(UserWarning, match=r"the reader 'broken' \(no_such_module_at_all\) could not be loaded"):
        assert read_checkpoint(tmp_path / "x.pt").names == ("fc",)


def test_a_reader_that_raises_is_a_damaged_file(tmp_path: Path) -> None:
    @register_reader("fragile", suffixes=(".fragile",))
    def read(path: Path, options: object) -> Contents:
        raise KeyError("no such thing")

    try:
        (tmp_path / "x.fragile").write_text("x")
        with pytest.raises(CheckpointError, match=r"x\.fragile: damaged, or not what it seems: KeyError"):
            read_checkpoint(tmp_path / "x.fragile")
    finally:
        unregister_reader("fragile")


def test_readers_without_a_way_to_be_found_or_unknown_are_refused() -> None:
    with pytest.raises(ArgumentError, match="needs matches or suffixes"):
        register_reader("never")
    with pytest.raises(ArgumentError, match="did you mean 'safetensors'"):
        unregister_reader("safetensor")
