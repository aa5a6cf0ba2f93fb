"""Where results shall go, files can be written: shown before any long work, and done whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from transferkit.atomic import write_atomically
from transferkit.errors import OutputError

__all__ = ["require_writable", "write_atomically"]


def require_writable(path: str | os.PathLike[str]) -> Path:
    """Create the folder of ``path`` and prove that a file can be written there, before any long work.

    Raises:
        OutputError: It cannot; the message names the path and the reason.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        probe = path.with_name(path.name + ".part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another path") from error
    return path
