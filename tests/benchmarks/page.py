"""The suite's results as one page."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import machine_line
from tests.benchmarks.members import MEMBERS
from tests.benchmarks.table import Table, tables_of

PREFACE = """\
# Benchmarks

Written by the suite itself; run it on a machine of your own with

    python -m tests.benchmarks --data_dir DIR --weights FILE

Every comparison is made within one run, the ways in turn, round by round: compare figures within a table, not between
tables. Where a cell shows several numbers they are the median of the rounds and, in brackets, the lowest and the highest.
Figures that fall short stand as they were measured. Where other programs took much of the machine's cores meanwhile, seconds
are too long and ratios less sure. `DIR` is a folder with `VOCdevkit`, `FILE` holds AlexNet's five ImageNet-trained
convolutions, `OUT` is where files go.
"""

NO_GPU = """\
## How fast is the full recipe on a GPU?

Not measured: there was no GPU. Where there is one, `python -m tests.benchmarks --gpu` measures patches per second of training
and scoring with all layers trained, the time for an epoch of 5,000 photos with 448 patches each, the share of it that the
GPU waits for patches, and the same with patches that lie on it already.
"""


@dataclass(frozen=True)
class Outcome:
    """What a member's run came to.

    Attributes:
        name: Of the member.
        title: What it asked.
        arguments: Its command line, ``DIR``, ``FILE`` and ``OUT`` in place of folders.
        date: When it began, UTC.
        seconds: How long it took.
        crowd: Part of the cores' time that other programs took meanwhile; ``None`` where the system does not tell.
        status: Its exit status; 0 if all that it holds to be true was.
        machine: What it ran on.
        tables: What it found.
    """

    name: str
    title: str
    arguments: str
    date: str
    seconds: float
    crowd: float | None
    status: int
    machine: dict[str, Any]
    tables: list[Table]

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """Return what :meth:`write` wrote."""
        entry = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**entry, "tables": tables_of(entry["tables"])})

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    def markdown(self) -> str:
        """Return the member's part of the page."""
        failed = "" if self.status == 0 else f" **It ended with status {self.status}.**"
        how = (
            f"`python -m tests.benchmarks.{self.name} {self.arguments}`, transferkit {self.machine['transferkit']}, "
            f"{self.date}, {self.seconds / 60:.1f} minutes"
        )
        crowd = "" if self.crowd is None else f"; other programs took {self.crowd:.0%} of the cores meanwhile"
        parts = [f"## {self.title}", f"{how}{crowd}.{failed}", *(table.markdown() for table in self.tables)]
        return "\n\n".join(parts)


def write_page(path: Path, outcomes: list[Outcome], folder: Path) -> None:
    """Write the page, and copy the pictures from ``folder`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    machines = {machine_line(outcome.machine): outcome.name for outcome in outcomes}
    parts = [PREFACE, *(f"Machine: {line}." for line in machines)]
    parts += [outcome.markdown() for outcome in outcomes]
    measured = {outcome.name for outcome in outcomes}
    parts += [f"## {member.title}\n\nNot measured yet." for member in MEMBERS if member.name not in measured]
    if "recipe_on_gpu" not in measured:
        parts.append(NO_GPU)
    path.write_text("\n\n".join(part.strip("\n") for part in parts) + "\n", encoding="utf-8")
    for picture in (name for outcome in outcomes for table in outcome.tables for name in table.pictures):
        if folder.resolve() != path.parent.resolve():
            target = path.parent / picture
            target.parent.mkdir(exist_ok=True)
            shutil.copy(folder / picture, target)
