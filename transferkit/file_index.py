"""What was found in files, remembered for as long as they stay as they were."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from transferkit.errors import DataError, OutputError
from transferkit.files import write_atomically

_TICK = 50_000_000  # nanoseconds; two changes within a tick of a file system's clock have one time
_COARSE_TICK = 2_000_000_000  # of file systems that count whole seconds
_SAVE_EVERY = 30.0  # seconds
_OUTDATED = 1000  # lines that may be so before the file is written anew


class Stamp(NamedTuple):
    """What tells that a file was written since."""

    size: int
    modified: int
    changed: int

    @staticmethod
    def of(path: Path | str) -> Stamp:
        """Return a regular file's; another kind, such as a pipe, might be waited for for ever."""
        found = os.stat(path)  # noqa: PTH116 - a million are asked
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is not a file")
        return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def settled(self) -> int:
        """Return the time, in nanoseconds, from which on a new change would show in the stamp."""
        changed = self.modified if sys.platform == "win32" else self.changed  # there: when it was created
        return changed + (_TICK if changed % 1_000_000_000 else _COARSE_TICK)


class FileIndex:
    """What was found in files, by name; it holds while a file's size and times stay as they were.

    What was found so soon after a change that another one might not show is not relied on. Rows are lines that are
    appended to a file, each with its checksum: several processes may write it, and what is lost or damaged costs no
    more than reading files again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, bytes] = {}  # as they are written: parsed, a million would take a gigabyte
        self._new: dict[str, bytes] = {}
        self._read_to, self._lines, self._saved = 0, 0, time.monotonic()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is known at home: workers read features."""
        return {**self.__dict__, "_rows": {}, "_new": {}}

    def get(self, name: str, file: Path | str) -> list[Any] | None:
        """Return what was found in a file, ``None`` if that may have changed."""
        if (row := self._rows.get(name)) is None:
            return None
        with suppress(OSError, DataError, ValueError, TypeError, RecursionError):
            stamp, found = json.loads(row)
            if [*Stamp.of(file)] == stamp and isinstance(found, list):
                return found
        return None

    def put(self, name: str, stamp: Stamp, found: list[Any]) -> None:
        """Remember what was found in a file."""
        self._rows[name] = self._new[name] = json.dumps([stamp, found], separators=(",", ":")).encode()

    def forget(self, name: str) -> None:
        """Forget what was found in a file."""
        self._rows.pop(name, None)
        self._new.pop(name, None)

    def found(self, name: str, file: Path | str, read: Callable[[], list[Any]]) -> list[Any]:
        """Return what ``read`` finds in a file, or found there before."""
        if (known := self.get(name, file)) is not None:
            return known
        stamp, began = None, time.time_ns()
        with suppress(OSError, DataError):  # what is wrong with it, its reader says
            stamp = Stamp.of(file)
        known = read()
        if stamp is not None and began > stamp.settled() and Stamp.of(file) == stamp:
            self.put(name, stamp, known)
            self.save(at_once=False)
        return known

    def save(self, *, at_once: bool = True) -> None:
        """Write what is new; where the index cannot be written, files are only read again."""
        late = time.monotonic() > self._saved + _SAVE_EVERY
        if not self._new or not (at_once or late):
            return
        with suppress(OSError, OutputError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._lines > 2 * len(self._rows) + _OUTDATED:
                write_atomically(self.path, lambda file: file.writelines(map(_line, self._rows.items())))
                self._lines = len(self._rows)
            else:
                with self.path.open("ab") as file:  # after a line that a killed process left unfinished
                    file.write(b"\n" + b"".join(map(_line, self._new.items())))
            self._new.clear()
        self._saved = time.monotonic()

    def refresh(self) -> None:
        """Read what was written since, by other processes too."""
        with suppress(OSError, ValueError, TypeError, RecursionError), self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self._read_to += len(line)
                self._lines += 1
                told, _, row = line[:-1].partition(b"\t")
                if told == _checksum(row):
                    name, _, row = row.partition(b"\t")
                    self._rows[json.loads(name)] = row


_current: ContextVar[FileIndex | None] = ContextVar("index", default=None)


@contextmanager
def remembering(path: Path | None) -> Iterator[None]:
    """Remember in an index what a block reads with :func:`found_in`; with ``None`` read it as before."""
    if path is None:
        yield
        return
    index = FileIndex(path)
    before = _current.set(index)
    try:
        yield
    finally:
        _current.reset(before)
        index.save()


def found_in(file: Path | str, what: str, read: Callable[[], list[Any]]) -> list[Any]:
    """Return what ``read`` finds in a file, of plain values as JSON has them, or found there before."""
    index = _current.get()
    return read() if index is None else index.found(f"{file}\0{what}", file, read)


def _line(row: tuple[str, bytes]) -> bytes:
    text = json.dumps(row[0]).encode() + b"\t" + row[1]
    return _checksum(text) + b"\t" + text + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def read_digest(path: Path) -> tuple[Stamp, bool, str]:
    """Return a file's stamp, whether that would show a change from now on, and the digest of its bytes."""
    began, stamp, digest = time.time_ns(), Stamp.of(path), hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    if Stamp.of(path) != stamp:
        raise DataError(f"{path} changed while it was read")
    return stamp, began > stamp.settled(), digest.hexdigest()
