"""Rows of text in columns that fit the terminal."""

from __future__ import annotations

from collections.abc import Sequence

_GAP = "  "
_LEAST = 12  # columns that a shrunken cell keeps


def text_table(
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    *,
    shrink: Sequence[int] = (0,),
    right: Sequence[str] = (),
) -> list[str]:
    """Return rows as lines with aligned columns.

    Args:
        rows: Cells; all rows have the same number. The first row is a header where ``right`` names its cells.
        width: Columns to fit into; ``None`` for as many as it takes.
        shrink: The columns that give way, in this order, where the lines would be too long.
        right: Header cells of the columns that are aligned to the right.

    Example:
        >>> text_table([["#", "name"], ["10", "fc"]], right=["#"])
        [' #  name', '10  fc']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for column in shrink if rows and width is not None else ():
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - (width or 0)
        widths[column] = min(widths[column], max(_LEAST, widths[column] - max(excess, 0)))
    to_the_right = [cell in right for cell in rows[0]] if rows else []
    return [
        _GAP.join(
            _fit(cell, size).rjust(size) if is_right else _fit(cell, size).ljust(size)
            for cell, size, is_right in zip(row, widths, to_the_right, strict=True)
        ).rstrip()
        for row in rows
    ]


def _fit(cell: str, size: int) -> str:
    return cell if len(cell) <= size else f"{cell[: size - 1]}…"
