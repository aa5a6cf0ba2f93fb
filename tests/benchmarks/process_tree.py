"""The memory of a command with all the processes that it starts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        seconds: Wall time.
        own: Highest memory of all its processes together, MB, what they share counted once and mapped files left out,
            since the system takes those back when it needs them.
        mapped: Highest memory in pages of mapped files, MB.
    """

    seconds: float
    own: float
    mapped: float


def watch(command: Sequence[str], every: float = 0.2) -> Usage:
    """Run a command to its end and return what it took.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    started, own, mapped = time.perf_counter(), 0.0, 0.0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            now = [memory(number) for number in tree(process.pid)]
            own = max(own, sum(mine for mine, _ in now))
            mapped = max(mapped, sum(files for _, files in now))
            time.sleep(every)
        seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Usage(seconds, own, mapped)


def tree(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [root]
    for number in found:
        found += children.get(number, [])
    return found


def memory(process: int) -> tuple[float, float]:
    """Return a process's share of memory, MB: anonymous and shared pages, and pages of files."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0.0, 0.0
    pages = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss")}
    return pages.get("Pss_Anon", pages.get("Pss", 0.0)) + pages.get("Pss_Shmem", 0.0), pages.get(
        "Pss_File", 0.0
    )
