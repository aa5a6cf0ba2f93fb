"""Rows of text, set as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def plain_table(rows: Rows) -> str:
    """Return a header, the rows and a last row for the mean, in columns; the first column is set left.

    Example:
        >>> print(plain_table([["class", "AP"], ["cat", "7.50"], ["mean", "7.50"]]))
        class    AP
        -----------
        cat    7.50
        -----------
        mean   7.50
    """
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def markdown_table(rows: Rows) -> str:
    """Return a header and its rows as a Markdown table; the first column is set left."""
    header, *body = rows
    align = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, align, *body))


def percent(value: float) -> str:
    """Return a share of 1 in percent with two digits; a dash for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def number_or_none(value: float) -> float | None:
    """Return ``None`` for NaN, which JSON does not have."""
    return None if math.isnan(value) else value
