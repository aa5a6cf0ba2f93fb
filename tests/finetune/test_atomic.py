"""A file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from transferkit.errors import OutputError
from transferkit.finetune import require_writable, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    (tmp_path / "run.pt.part").write_bytes(b"long left-over of a killed writer")
    write_atomically(path, lambda file: file.write(b"new"))
    assert [child.name for child in tmp_path.iterdir()] == ["run.pt"]
    assert path.read_bytes() == b"new"


def test_a_path_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    assert require_writable(tmp_path / "new" / "run.pt") == tmp_path / "new" / "run.pt"
    assert list((tmp_path / "new").iterdir()) == []


def test_a_path_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/run.pt: .*choose another path"):
        require_writable(tmp_path / "file" / "run.pt")
    with pytest.raises(OutputError, match="cannot write .*: .*is a folder"):
        require_writable(tmp_path)
