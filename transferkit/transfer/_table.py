"""The account of a transfer as a table, for a terminal or a notebook."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from transferkit.display import fit, text_table
from transferkit.errors import harmless
from transferkit.layers import split_key
from transferkit.transfer._entry import BUCKETS, Entry

if TYPE_CHECKING:
    from transferkit.transfer.account import Account


@dataclass(frozen=True)
class Row:
    """One layer of the account, or the same layer of several blocks.

    Attributes:
        bucket: The bucket of its tensors.
        layer: Its name; ``"blocks.{0-11}.conv"`` for twelve of them.
        tensors: Short names and shapes.
        source: The source layers that they come from.
        why: What the bucket does not say.
    """

    bucket: str
    layer: str
    tensors: str
    source: str
    why: str


def rows_of(entries: Iterable[Entry]) -> list[Row]:
    """Return one row per layer and bucket, with the layers of repeated blocks folded."""
    return folded([_row(members) for _, members in groupby(entries, key=_layer_and_bucket)])


def folded(rows: Sequence[Row]) -> list[Row]:
    """Return rows with those made one whose names differ in one number and all else is the same.

    Which of a name's numbers counts the blocks is found by trying: the one that leaves the fewest rows.
    """
    return min([list(rows), *(_fold(rows, position) for position in range(3))], key=len)


def _layer_and_bucket(entry: Entry) -> tuple[str, str]:
    return split_key(entry.key)[0], entry.bucket


def _row(members: Iterable[Entry]) -> Row:
    entries = list(members)
    sides = [entry.target or entry.sources[0] for entry in entries]
    tensors = ", ".join(f"{split_key(side.key)[1]} {list(side.shape)}" for side in sides)
    sources = dict.fromkeys(split_key(s.key)[0] for e in entries for s in e.sources if e.target)
    why = dict.fromkeys(word for entry in entries for word in _why(entry))
    return Row(entries[0].bucket, _layer_and_bucket(entries[0])[0], tensors, ", ".join(sources), "; ".join(why))


def _why(entry: Entry) -> list[str]:
    words = [entry.reason] if entry.reason else []
    words += [f"by {_short(entry.handler)}"] if entry.handler and not entry.is_problem else []
    words += [f"allowed by {entry.allowed}"] if entry.allowed else []
    words += [f"with {entry.tied_to}"] if entry.tied_to else []
    return words


def _short(handler: str) -> str:
    """Return what a handler is called, without the thousand class names that it may have been given."""
    return handler if len(handler) <= 60 else handler.partition("(")[0]


def _fold(rows: Sequence[Row], position: int) -> list[Row]:
    """Fold the rows whose layers' names differ in the number at ``position`` alone, into the first of them."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        parts = _split(row.layer)
        place = 2 * position + 1
        masked = tuple(part for number, part in enumerate(parts) if number != place)
        texts = (row.bucket, row.tensors, _without_numbers(row.source), _without_numbers(row.why))
        groups.setdefault((masked, place < len(parts), *texts), []).append(row)
    return [
        replace(
            group[0],
            **{name: _label([getattr(row, name) for row in group]) for name in ("layer", "source", "why")},
        )
        for group in groups.values()
    ]


def _label(names: Sequence[str]) -> str:
    """Return one text for several that differ in numbers: ``["b.0", "b.1", "b.2"] -> "b.{0-2}"``."""
    columns = zip(*(_split(name) for name in names), strict=True)
    return "".join(parts[0] if len(set(parts)) == 1 else f"{{{_ranges(parts)}}}" for parts in columns)


def _ranges(numbers: Iterable[str]) -> str:
    """Return numbers as ranges: ``["0", "1", "2", "5"] -> "0-2,5"``."""
    runs: list[list[int]] = []
    for number in sorted({int(number) for number in numbers}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _split(name: str) -> list[str]:
    return re.split(r"(\d{1,18})", name)  # Python makes no number of thousands of digits


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


# The account of a transfer as text, fitted to a terminal, and as HTML for a notebook.

_GREEN, _CYAN, _BLUE, _GRAY, _RED, _YELLOW = 32, 36, 34, 90, 31, 33

_COLORS = dict(zip(BUCKETS, (_GREEN, _CYAN, _CYAN, _BLUE, _GRAY, _RED, _YELLOW, _YELLOW), strict=True))


def render_text(account: Account, *, width: int | None = None, color: bool | None = None) -> str:
    """Return an account as text.

    Args:
        account: A plan or a report.
        width: Characters a line may have; ``None`` for the terminal's width, or as many as it takes where standard
            output is none.
        color: Whether buckets are colored; ``None`` for on a terminal, unless ``NO_COLOR`` is set.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if width is None and terminal:
        width = shutil.get_terminal_size().columns
    cells = [_cells(row) for row in rows_of(account.entries)]
    lines = [fit(line, width) for line in (*_head(account), *text_table(cells, width))]
    if terminal and not os.environ.get("NO_COLOR") if color is None else color:
        lines = [colored(line) for line in lines]
    return "\n".join([*lines, *_tail(account)])


def render_html(account: Account) -> str:
    """Return an account as HTML: the head, and the table of layers."""
    body = "".join(
        f"<tr><td>{'</td><td>'.join(map(escape, _cells(row)))}</td></tr>" for row in rows_of(account.entries)
    )
    head = "<br>".join(map(escape, _head(account)))
    tail = "".join(f"<li>{escape(line)}</li>" for line in _tail(account))
    titles = "".join(f"<th>{title}</th>" for title in ("", "layer", "tensors", "from"))
    return f"<div><p>{head}</p><table><tr>{titles}</tr>{body}</table><ul>{tail}</ul></div>"


def colored(line: str) -> str:
    """Return a line of :func:`render_text` with its bucket, if it begins with one, in that bucket's color."""
    bucket = line.partition(" ")[0]
    code = _COLORS.get(bucket)
    return line if code is None else f"\x1b[{code}m{bucket}\x1b[0m{line[len(bucket) :]}"


def _head(account: Account) -> list[str]:
    counts = {bucket: len(account.bucket(bucket)) for bucket in BUCKETS}
    lines = [
        f"{account.origin.name} -> {account.target}, mapped by {account.mapping}",
        f"moved {account.coverage}",
        ", ".join(f"{count} {bucket}" for bucket, count in counts.items() if count),
        *(f"{text} matches {count} layer{'s' * (count != 1)}" for text, count in account.rules),
    ]
    return [harmless(line) for line in lines]


def _tail(account: Account) -> list[str]:
    states = {
        outcome: [line for line in account.states if line.outcome == outcome]
        for outcome in ("moved", "adapted", "reset")
    }
    lines = [
        f"optimizer state {outcome}: {len(group)} parameters" for outcome, group in states.items() if group
    ]
    lines += [f"  {line.key}: {line.reason}" for line in states["reset"]]
    lines += [f"note: {note}" for note in (*account.origin.notes, *account.notes)]
    return [harmless(line) for line in lines]


def _cells(row: Row) -> tuple[str, ...]:
    cells = row.bucket, row.layer, row.tensors, "; ".join(filter(None, (row.source, row.why)))
    return tuple(map(harmless, cells))
