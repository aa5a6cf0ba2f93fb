"""The account of a transfer as text, fitted to a terminal, and as HTML for a notebook."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from transferkit.transfer.entry import BUCKETS
from transferkit.transfer.rows import Row, rows_of

if TYPE_CHECKING:
    from transferkit.transfer.account import Account

_GREEN, _CYAN, _BLUE, _GREY, _RED, _YELLOW = 32, 36, 34, 90, 31, 33
_COLOURS = dict(zip(BUCKETS, (_GREEN, _CYAN, _CYAN, _BLUE, _GREY, _RED, _YELLOW, _YELLOW), strict=True))
_MINIMUM = 12  # characters that a column keeps when the table is cut to the terminal's width


def render_text(account: Account, *, width: int | None = None, colour: bool | None = None) -> str:
    """Return an account as text.

    Args:
        account: A plan or a report.
        width: Characters a line may have; ``None`` for the terminal's width, or as many as it takes where standard
            output is none.
        colour: Whether buckets are coloured; ``None`` for on a terminal, unless ``NO_COLOR`` is set.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if width is None and terminal:
        width = shutil.get_terminal_size().columns
    cells = [_cells(row) for row in rows_of(account.entries)]
    lines = [_fit(line, width) for line in (*_head(account), *columns(cells, width))]
    if terminal and not os.environ.get("NO_COLOR") if colour is None else colour:
        lines = [coloured(line) for line in lines]
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


def columns(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return rows of cells as lines with aligned columns, the widest columns cut until the lines fit.

    Example:
        >>> columns([("copied", "features.0"), ("missing", "fc")])
        ['copied   features.0', 'missing  fc']
    """
    if not rows:
        return []
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > _MINIMUM:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(_fit(cell, room).ljust(room) for cell, room in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def coloured(line: str) -> str:
    """Return a line of :func:`render_text` with its bucket, if it begins with one, in that bucket's colour."""
    bucket = line.partition(" ")[0]
    code = _COLOURS.get(bucket)
    return line if code is None else f"\x1b[{code}m{bucket}\x1b[0m{line[len(bucket) :]}"


def _head(account: Account) -> list[str]:
    counts = {bucket: len(account.bucket(bucket)) for bucket in BUCKETS}
    return [
        f"{account.origin.name} -> {account.target}, mapped by {account.mapping}",
        f"moved {account.coverage}",
        ", ".join(f"{count} {bucket}" for bucket, count in counts.items() if count),
        *(f"{text} matches {count} layer{'s' * (count != 1)}" for text, count in account.rules),
    ]


def _tail(account: Account) -> list[str]:
    states = {
        outcome: [line for line in account.states if line.outcome == outcome]
        for outcome in ("moved", "adapted", "reset")
    }
    lines = [
        f"optimizer state {outcome}: {len(group)} parameters" for outcome, group in states.items() if group
    ]
    lines += [f"  {line.key}: {line.reason}" for line in states["reset"]]
    return [*lines, *(f"note: {note}" for note in (*account.origin.notes, *account.notes))]


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.bucket, row.layer, row.tensors, "; ".join(filter(None, (row.source, row.why)))


def _fit(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else f"{text[: max(width - 1, 0)]}…"
