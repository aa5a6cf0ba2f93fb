"""One writer at a time in a folder: a lock file that names the job which writes there, and does not outlive it."""

from __future__ import annotations

import _thread
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue

from transferkit.distributed import first_tries
from transferkit.errors import OutputError

LOCK = ".transferkit.lock"
BEAT = 15.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a process that cannot be looked at counts as gone
_POLL = 0.1


@dataclass(frozen=True)
class Process:
    """A process that stays recognizable after it is gone and its number is another's.

    Attributes:
        machine: Where its number counts: a digest of a machine's boot and the namespace of its process numbers.
        pid: Its number.
        started: When it began, in clock ticks since the boot; empty where the system does not tell.
    """

    machine: str
    pid: int
    started: str

    def is_gone(self, silence: float, most: float = SILENCE) -> bool:
        """Tell whether it has ended.

        Args:
            silence: Seconds since its last sign of life, which decide where the process cannot be looked at.
            most: Seconds after which such a process counts as gone.
        """
        if self.machine != _machine() or sys.platform == "win32":  # there os.kill(pid, 0) is Ctrl-C
            return silence > most
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass  # another user's
        now = _started(self.pid)
        return silence > most if not (now and self.started) else now != self.started


def this_process() -> Process:
    """Return the process that runs this."""
    return Process(_machine(), os.getpid(), _started(os.getpid()))


@cache
def _machine() -> str:
    try:  # a container has its own numbers on a machine that it shares, and often the name of another
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        name = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        name = f"{socket.gethostname()} {uuid.getnode():x}"
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """Return when a process began, "ended" for one that nobody has buried yet, "" where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True)
class _Job:
    """What a lock file says of the job that holds it."""

    process: Process
    host: str
    program: str  # without its arguments, which may be secret
    since: str
    token: str

    @staticmethod
    def own() -> _Job:
        program, since = Path(sys.argv[0]).name, datetime.now().astimezone().isoformat(timespec="seconds")
        return _Job(this_process(), socket.gethostname(), program, since, uuid.uuid4().hex)

    @staticmethod
    def read(text: str) -> _Job | None:
        """Return the job of a lock file; ``None`` if it names none."""
        try:
            found = json.loads(text)
            process = Process(**found.pop("process"))
            return _Job(process, **found) if type(process.pid) is int and process.pid > 0 else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def __str__(self) -> str:
        words = f"{self.program} (process {self.process.pid} on {self.host}, since {self.since})"
        return "".join(letter if letter.isprintable() else "?" for letter in words[:300])


def lock_folder(folder: Path | str, *, wait: float = 0.0) -> AbstractContextManager[None]:
    """Let no other job write to a folder for the duration of a block.

    All ranks of a job share its lock, which rank 0 holds; each of them must come here. A lock whose process is gone
    is taken over: at once on the same machine, and ``SILENCE`` seconds after its last sign of life on another.

    Args:
        folder: The folder, made if it is not there.
        wait: Seconds to wait for another job to leave.

    Raises:
        OutputError: Another job holds it, which the message names; or the folder cannot be written. The same on all
            ranks.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder, lock_folder(folder):
        ...     [path.name for path in Path(folder).iterdir()]
        ['.transferkit.lock']
    """
    return lock_file(folder, Path(folder) / LOCK, wait=wait)


@contextmanager
def lock_file(subject: Path | str, path: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Let no other job write to ``subject``, as :func:`lock_folder` does for a folder; its lock is ``path``."""
    # Signals interrupt the main thread alone, so what another one has begun to take or to give back is whole; nor can
    # they divide the one call that tells it of the end.
    told: SimpleQueue[OutputError | None] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    left: SimpleQueue[None] = SimpleQueue()
    started = False

    def take() -> None:
        nonlocal started
        # Not threading.Thread, whose start and join have locks of their own that an interruption breaks.
        _thread.start_new_thread(_keep, (subject, path, wait, told, ended, left))
        started = True
        if (problem := told.get()) is not None:
            raise problem

    try:
        first_tries(take)
        yield
    finally:
        ended.put(None)
        if started:
            left.get()


def _keep(
    subject: Path | str,
    path: Path,
    wait: float,
    told: SimpleQueue[OutputError | None],
    ended: SimpleQueue[None],
    left: SimpleQueue[None],
) -> None:
    """Take a lock, tell what prevented it if anything did, give signs of life, and give it back in the end."""
    job = _Job.own()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(subject, path, job, time.monotonic() + wait, ended)
        told.put(None)
        while not _ends_now(ended):
            with suppress(OSError):
                if _holds(job, path):
                    os.utime(path)
    except OutputError as error:
        told.put(error)
    except OSError as error:
        told.put(OutputError(f"cannot write {path}: {error.strerror or error}; write elsewhere"))
    finally:
        told.put(OutputError(f"cannot take {path}"))  # lest anybody wait for ever after the unforeseen
        _release(path, job)
        left.put(None)


def _ends_now(ended: SimpleQueue[None]) -> bool:
    """Wait until it is time for a sign of life; tell whether the end came first."""
    try:
        ended.get(timeout=BEAT)
    except Empty:
        return False
    return True


def _acquire(subject: Path | str, path: Path, job: _Job, deadline: float, ended: SimpleQueue[None]) -> None:
    while not (not ended.empty() or _create(path, job)):
        found = _read(path)
        holder, silence = _Job.read(found[0]), _folder_time(path.parent) - found[1]
        if silence > SILENCE if holder is None else holder.process.is_gone(silence):
            _remove(subject, path, found, job, deadline, ended)
        elif time.monotonic() < deadline or (not found[0] and silence < 1):  # an empty one is being written
            time.sleep(_POLL)
        else:
            way = "wait until it has ended, or write elsewhere"
            if holder is None or holder.process.machine != job.process.machine:
                way += f"; should it be gone, its lock is taken over after {SILENCE:.0f} s, or delete {path}"
            name = "" if holder is None else f", {holder}"
            raise OutputError(f"{subject} is in use by another job{name}; {way}")


def _create(path: Path, job: _Job) -> bool:
    """Create the lock file, which no other process then can (on NFS too, from version 3 on)."""
    try:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(json.dumps(asdict(job)))
                file.flush()
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True


def _remove(
    subject: Path | str,
    path: Path,
    found: tuple[str, float],
    job: _Job,
    deadline: float,
    ended: SimpleQueue[None],
) -> None:
    """Remove the lock of a job that is gone; of several who found it, one at a time, lest they remove a new one."""
    turn = path.with_name(path.name + ".next")
    try:
        _acquire(subject, turn, job, deadline, ended)
        if _read(path) == found:
            path.unlink(missing_ok=True)
    finally:
        _release(turn, job)


def _holds(job: _Job, path: Path) -> bool:
    holder = _Job.read(_read(path)[0])
    return holder is not None and holder.token == job.token


def _release(path: Path, job: _Job) -> None:
    with suppress(OSError):
        if _holds(job, path):
            path.unlink()


def _read(path: Path) -> tuple[str, float]:
    """Return the text and time of a lock file; nothing, and now, if it has just gone."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(10_000), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return "", _folder_time(path.parent)


def _folder_time(folder: Path) -> float:
    """Return the time by the clock of a folder's disk, which may be another machine's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
