"""Files written whole or not at all, where downloads are kept, and the lock that lets many processes share them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from transferkit.errors import OutputError


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> Path:
    """Write ``path`` so that a kill at any moment leaves the old file or the new one, never a part.

    The bytes go to ``{path}.part`` beside it, are flushed to the disk, and are renamed in one step. Only one process
    may write a path at a time; a ``.part`` file left by a killed one is overwritten by the next.

    Args:
        path: Where the file goes; its folder exists.
        write: Called with the open binary file.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    _flush_folder(path.parent)
    return path


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is a file; pathlib raises for names that no file can have, such as very long ones."""
    return os.path.isfile(path)  # noqa: PTH113


_UNFIT = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]|^\._|^\.{0,2}$")  # "._" is macOS's own, and never read


def fits_a_file(name: str) -> bool:
    """Return whether a file can have a name that comes from data, and stays in its folder."""
    return not _UNFIT.search(name)


def as_file_name(name: str) -> str:
    """Return another name for a file, without slashes and blanks; different names give different ones.

    Example:
        >>> as_file_name("../traffic light")
        '%2E.%2Ftraffic%20light'
    """
    odd = re.compile(r"^\.|^$|[\s\x00-\x1f\x7f/\\%\ud800-\udfff]")
    quoted = [f"%{byte:02X}" for byte in range(256)]
    return odd.sub(
        lambda found: "".join(quoted[b] for b in found[0].encode(errors="surrogatepass")) or "%", name
    )


def leaves_its_folder(name: str) -> bool:
    """Return whether a path that comes from data leads out of the folder that it is below, on any system."""
    windows = PureWindowsPath(name)
    return bool(PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``; other processes wait for it. A process that dies releases it.

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
