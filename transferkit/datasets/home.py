"""Where downloads are kept, and the lock that lets many processes share them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def home_folder(home: Path | str | None = None) -> Path:
    """Return the folder that downloads are kept in.

    Args:
        home: The folder; None takes ``TRANSFERKIT_HOME`` from the environment, else ``transferkit`` in the
            user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``).
    """
    if home is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = os.environ.get("TRANSFERKIT_HOME") or Path(cache) / "transferkit"
    return Path(home).expanduser()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; other processes wait for it. A process that dies lets go of it.

    The file stays behind, empty: removing it would let a third process lock another file of the same name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _lock(file)
        try:
            yield
        finally:
            _unlock(file)


if sys.platform == "win32":
    import msvcrt
    import time

    def _lock(file: IO[bytes]) -> None:
        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return
            except OSError:
                time.sleep(0.1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
