"""Files written whole or not at all, where downloads are kept, and the lock that lets many processes share them."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from transferkit.errors import OutputError, TransferKitError
from transferkit.locks import Process, this_process

_calls = itertools.count()
_cleaned: set[Path] = set()  # folders, once in each process


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> Path:
    """Write ``path`` so that a kill at any moment leaves the old file or the new one, never a part.

    The bytes go to a ``.part`` file beside it, which no other call shares, are flushed to the disk, and are renamed
    in one step: of several writers the last one wins. What killed processes left in the folder is removed.

    Args:
        path: Where the file goes; its folder exists.
        write: Called with the open binary file.

    Raises:
        OutputError: It cannot be written; the message names the path and the reason. The old file is as it was.
    """
    path = Path(path)
    if path.parent not in _cleaned:
        remove_parts_of_the_dead(path.parent)
    part = _part_of(path)
    with faults_named(path):
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    _flush_folder(path.parent)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text as :func:`write_atomically` does."""
    return write_atomically(path, lambda file: file.write(text.encode()))


@contextmanager
def faults_named(path: str | os.PathLike[str], advice: str = "") -> Iterator[None]:
    """Raise an ``OutputError`` with path and reason for a fault of the disk in a block that writes ``path``.

    Raises:
        OutputError: For any ``OSError``, also where a writer, such as torch's, made another error of it.
        KeyboardInterrupt: Likewise.
    """
    handled = sys.exc_info()[1]
    try:
        yield
    except BaseException as error:
        below: BaseException | None = error
        while below is not None and below is not handled:  # what was handled before has no part in it
            if below is error and isinstance(error, TransferKitError):
                break
            if isinstance(below, (KeyboardInterrupt, SystemExit)):
                raise below from None
            if isinstance(below, OSError):
                raise OutputError(f"cannot write {path}: {below.strerror or below}{advice}") from error
            below = below.__cause__ or below.__context__
        raise


def _part_of(path: Path) -> Path:
    """Return a name that no other call uses, and that tells whose it is."""
    own = this_process()
    return path.with_name(f"{path.name}.{own.machine}-{own.pid}-{own.started or 0}-{next(_calls)}.part")


_PART = re.compile(r".+\.([0-9a-f]{12})-(\d+)-(\d+)-\d+\.part", re.DOTALL)


def remove_parts_of_the_dead(folder: Path) -> None:
    """Remove the ``.part`` files of processes that are gone; those of other machines after an hour."""
    _cleaned.add(folder)
    with suppress(OSError):
        for part in folder.iterdir():
            if (whose := _PART.fullmatch(part.name)) is None:
                continue
            process = Process(whose[1], int(whose[2]), whose[3].lstrip("0"))
            with suppress(OSError):
                if process.is_gone(time.time() - part.stat().st_mtime, most=3600):
                    part.unlink()


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
    with faults_named(path, "; choose another path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        remove_parts_of_the_dead(path.parent)
        probe = _part_of(path)
        try:
            probe.write_bytes(b"\0")  # where the disk is full, an empty file can still be made
        finally:
            probe.unlink(missing_ok=True)
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
