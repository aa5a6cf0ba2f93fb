"""Run members one after the other, each in a process of its own, and keep what each found."""

from __future__ import annotations

import importlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.benchmarks.machine import describe_machine
from tests.benchmarks.members import Member
from tests.benchmarks.page import Outcome
from tests.benchmarks.rounds import processor_seconds, say
from tests.benchmarks.table import read_tables

ROOT = Path(__file__).resolve().parents[2]


def run_member(member: Member, places: dict[str, str], folder: Path, *, quick: bool, again: bool) -> Outcome:
    """Return what a member found; of an earlier run with the same arguments, if that ended well.

    Args:
        member: Which.
        places: What ``DIR``, ``FILE`` and ``OUT`` stand for.
        folder: Where outcomes are kept.
        quick: Take the arguments for trying it out.
        again: Run it even if there is an outcome.
    """
    kept = folder / f"{member.name}.json"
    arguments = member.quick if quick else member.arguments
    if kept.is_file() and not again:
        earlier = Outcome.read(kept)
        if earlier.status == 0 and earlier.arguments == arguments:
            say(f"{member.name}: done at {earlier.date}, kept (--again measures anew)")
            return earlier
    say(f"{member.name}: {member.title} About {member.minutes:g} minutes on two quiet cores.")
    date, started = time.strftime("%Y-%m-%d %H:%M", time.gmtime()), time.perf_counter()
    others = others_seconds()
    with TemporaryDirectory() as temporary:
        found = Path(temporary, "tables.json")
        command = [sys.executable, "-m", f"tests.benchmarks.{member.name}", *member.command(places, quick)]
        say(shlex.join(command[1:]))
        command += ["--json", str(found)]
        status = (
            in_this_process(command) if quick else subprocess.run(command, cwd=ROOT, check=False).returncode
        )
        tables = read_tables(found) if found.is_file() else []
    seconds = time.perf_counter() - started
    outcome = Outcome(
        name=member.name,
        title=member.title,
        arguments=arguments,
        date=date,
        seconds=seconds,
        crowd=None if others is None else max(0.0, others_seconds() - others) / seconds / (os.cpu_count() or 1),
        status=status,
        machine=describe_machine(),
        tables=tables,
    )
    outcome.write(kept)
    say(f"{member.name}: status {status} after {seconds:.0f} s")
    return outcome


def others_seconds() -> float | None:
    """Return the processor time that other programs have taken since the machine started; ``None`` if it is not told."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft_irq = ticks
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK") - processor_seconds()


def in_this_process(command: list[str]) -> int:
    """Call the ``main`` of ``python -m module arguments`` here, which spares starting Python and importing torch; return its status."""
    _, _, module, *arguments = command
    threads, before = torch.get_num_threads(), sys.argv
    sys.argv = [module, *arguments]
    try:
        return int(importlib.import_module(module).main() or 0)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
        torch.set_num_threads(threads)
