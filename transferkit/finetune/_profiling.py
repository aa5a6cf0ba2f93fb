"""A profile of training: a table of the time by phase and operator, and a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import record_function

from transferkit.distributed import is_first
from transferkit.files import write_atomically

WARM_UP, STEPS = 2, 10
PHASES = ("wait for patches", "forward", "backward", "optimizer")

Item = TypeVar("Item")


def waited_for(items: Iterable[Item]) -> Iterator[Item]:
    """Yield ``items``; the wait for each appears in a profile."""
    source = iter(items)
    while True:
        with record_function(PHASES[0]):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item


@contextmanager
def profiled(folder: Path | None) -> Iterator[Callable[[], object]]:
    """Profile steps 3 to 12 of a block on rank 0 if ``folder`` is given; yield a function to call after each step."""
    if folder is None or not is_first():
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder, f"an epoch of fewer than {WARM_UP + 1} steps is too short to profile\n")
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1),
        on_trace_ready=partial(_write, folder),
        acc_events=True,
    ) as profiler:
        yield profiler.step


def _write(folder: Path, profiler: torch.profiler.profile) -> None:
    _write_table(folder, table(profiler.key_averages()))
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))


def _write_table(folder: Path, text: str) -> None:
    write_atomically(folder / "profile.txt", lambda file: file.write(text.encode()))


def table(averages: Iterable[Any], operators: int = 12) -> str:
    """Return the time by phase and by operator from ``torch.profiler.profile.key_averages()``."""
    every = list(averages)
    taken = [event for event in every if event.key.startswith("ProfilerStep")]
    steps = max(1, sum(event.count for event in every if event.key == PHASES[-1]))
    wall = max(1.0, sum(event.cpu_time_total for event in taken))  # microseconds
    phases = {event.key: event.cpu_time_total for event in every if event.key in PHASES}
    on_device = sum(event.self_device_time_total for event in every if event.key not in PHASES)
    own = {
        event.key: (event.self_device_time_total if on_device else event.self_cpu_time_total, event.count)
        for event in every
        if event not in taken and event.key not in PHASES
    }
    heaviest = sorted(own, key=own.__getitem__, reverse=True)[:operators]
    lines = [f"{steps} steps of {wall / steps / 1e3:.1f} ms each"]
    if on_device:
        lines.append(
            f"the device was busy for {on_device / wall:.0%} of the time; operators by their time on it"
        )
    lines += ["", f"{'phase':<42}{'ms per step':>14}{'share':>8}"]
    lines += [_line(name, phases[name], steps, wall) for name in PHASES if name in phases]
    lines += [_line("all else", wall - sum(phases.values()), steps, wall)]
    lines += ["", f"{'operator':<42}{'ms per step':>14}{'share':>8}{'calls per step':>17}"]
    lines += [_line(name, own[name][0], steps, wall) + f"{own[name][1] / steps:>17.1f}" for name in heaviest]
    return "\n".join(lines) + "\n"


def _line(name: str, microseconds: float, steps: int, wall: float) -> str:
    return f"{name[:41]:<42}{microseconds / steps / 1e3:>14.2f}{microseconds / wall:>8.1%}"
