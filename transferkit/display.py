"""What is shown: tables as aligned text and as Markdown, the colors of pictures, and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferkit.errors import harmless

# Okabe and Ito's palette, which the color-blind can tell apart: blue, vermilion, green, purple, orange, sky blue.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_WIDEST = (
    200  # characters that a column is padded to where the width is not given; one long name would pad all rows
)

Rows = Sequence[Sequence[str]]
_GAP = "  "
_LEAST = 12  # characters that a shrunken column keeps


def text_table(
    rows: Rows, width: int | None = None, *, shrink: Sequence[int] | None = None, right: Sequence[int] = ()
) -> list[str]:
    """Return rows as lines with aligned columns.

    Args:
        rows: Cells; all rows have the same number.
        width: Columns of text to fit into; ``None`` for as many as it takes.
        shrink: The columns that give way, in this order; ``None``: always the widest.
        right: The columns that are aligned to the right.

    Example:
        >>> text_table([["#", "name"], ["10", "fc"]], right=[0])
        [' #  name', '10  fc']
    """
    if not rows:
        return []
    rows = [[harmless(cell) for cell in row] for row in rows]
    sizes = _sizes([max(map(len, column)) for column in zip(*rows, strict=True)], width, shrink)
    return [
        _GAP.join(
            fit(cell, width and size).rjust(size) if place in right else fit(cell, width and size).ljust(size)
            for place, (cell, size) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in rows
    ]


def summary_table(rows: Rows) -> str:
    """Return a header, the rows and a last row for the mean, with rules between; numbers are set right.

    Example:
        >>> print(summary_table([["class", "AP"], ["cat", "7.50"], ["mean", "7.50"]]))
        class    AP
        -----------
        cat    7.50
        -----------
        mean   7.50
    """
    lines = text_table(rows, right=range(1, len(rows[0])))
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def markdown_table(rows: Rows) -> str:
    """Return a header and its rows as a Markdown table; numbers are set right, and what is written stays text."""
    header, *body = ([_as_text(harmless(cell)) for cell in cells] for cells in rows)
    align = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, align, *body))


def _as_text(cell: str) -> str:
    return " ".join(cell.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").split())


def fit(text: str, width: int | None) -> str:
    """Return text cut to a width, with an ellipsis where something is missing."""
    return text if width is None or len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def _sizes(sizes: list[int], width: int | None, shrink: Sequence[int] | None) -> list[int]:
    """Return the columns' sizes, made smaller until a line fits, but for what each column keeps."""
    room = None if width is None else width - len(_GAP) * (len(sizes) - 1)
    if room is None:
        return [min(size, _WIDEST) for size in sizes]
    sizes = [min(size, max(room, _LEAST)) for size in sizes]
    if shrink is not None:
        for column in shrink:
            sizes[column] = min(sizes[column], max(_LEAST, sizes[column] - max(sum(sizes) - room, 0)))
        return sizes
    while sum(sizes) > room and max(sizes) > _LEAST:
        sizes[sizes.index(max(sizes))] -= 1
    return sizes


def as_csv(rows: Sequence[Sequence[Any]]) -> str:
    r"""Return rows as CSV text; a NaN is left empty.

    Example:
        >>> as_csv([["class", "AP"], ["cat", 0.5], ["dog", float("nan")]])
        'class,AP\ncat,0.5\ndog,\n'
    """
    text = io.StringIO()
    full = [["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows(full)
    return text.getvalue()


def as_json(value: object) -> str:
    """Return plain values as JSON that any reader takes: NaN and infinities, which it does not have, become null.

    Example:
        >>> as_json(float("nan"))
        'null'
    """
    return json.dumps(_finite(value), indent=2, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
