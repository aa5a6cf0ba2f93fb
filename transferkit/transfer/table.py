"""The account of a transfer as text: one line a layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from transferkit.layers import split_key
from transferkit.transfer.entry import BUCKETS, Entry

if TYPE_CHECKING:
    from transferkit.transfer.account import Account


def render_text(account: Account) -> str:
    """Return the account as text."""
    counts = {bucket: len(account.bucket(bucket)) for bucket in BUCKETS}
    lines = [
        f"{account.origin.name} -> {account.target}, mapped by {account.mapping}: {account.coverage}",
        ", ".join(f"{count} {bucket}" for bucket, count in counts.items() if count),
        *(f"rule {text}: {count} layers" for text, count in account.rules),
        *columns(_rows(account.entries)),
        *account.notes,
    ]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """Return rows of cells as lines with aligned columns."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        gap.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _rows(entries: Iterable[Entry]) -> list[tuple[str, str, str, str]]:
    rows = []
    for (layer, bucket), group in groupby(entries, key=lambda entry: (split_key(entry.key)[0], entry.bucket)):
        members = list(group)
        tensors = ", ".join(f"{split_key(e.key)[1]} {list(_shape(e))}" for e in members)
        sources = dict.fromkeys(split_key(side.key)[0] for e in members for side in e.sources if e.target)
        why = dict.fromkeys(e.reason for e in members if e.reason)
        rows.append((bucket, layer, tensors, "; ".join([", ".join(sources), *why]).removeprefix("; ")))
    return rows


def _shape(entry: Entry) -> tuple[int, ...]:
    return entry.target.shape if entry.target is not None else entry.sources[0].shape
