"""What a benchmark found, as tables that are kept in JSON and read in Markdown."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Cell = str | float | list[float] | None
"""Text, a number, the numbers of all rounds, or nothing where it was not measured."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: What is compared, on how much of what.
        columns: How each column writes its numbers (``".2f"``) by its heading, which carries the unit.
        rows: Cells in the columns' order.
        notes: What a reader has to know to read it right.
        pictures: Files that show it, named relative to the file that the table is kept in.
    """

    title: str
    columns: dict[str, str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        """Append a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for the {len(self.columns)} columns of {self.title!r}")
        self.rows.append(list(cells))

    def markdown(self) -> str:
        """Return the title, the table and the notes."""
        texts = [[written(cell, form) for cell, form in zip(row, self.columns.values(), strict=True)]
                 for row in self.rows]  # fmt: skip
        lines = [
            _line(self.columns),
            _line("---:" if form else "---" for form in self.columns.values()),
            *map(_line, texts),
        ]
        pictures = [f"![{self.title}]({name})" for name in self.pictures]
        return "\n\n".join([f"**{self.title}**", "\n".join(lines), *self.notes, *pictures])


def written(cell: Cell, form: str) -> str:
    """Return a cell as text; the numbers of several rounds as their median and range.

    Example:
        >>> written([2.0, 1.0, 4.0], ".1f"), written(1234.5, ",.0f"), written(None, "")
        ('2.0 (1.0 to 4.0)', '1,234', 'not measured')
    """
    if cell is None:
        return "not measured"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list):
        middle, low, high = (format(value, form) for value in (statistics.median(cell), min(cell), max(cell)))
        return middle if len(cell) == 1 else f"{middle} ({low} to {high})"
    return format(cell, form)


def write_tables(path: Path, tables: list[Table]) -> None:
    """Write tables as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps([asdict(table) for table in tables], indent=1), encoding="utf-8")
    partial.replace(path)


def read_tables(path: Path) -> list[Table]:
    """Return the tables that :func:`write_tables` wrote."""
    return tables_of(json.loads(path.read_text(encoding="utf-8")))


def tables_of(entries: list[dict[str, Any]]) -> list[Table]:
    """Return tables from their plain values."""
    return [Table(**entry) for entry in entries]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
