"""The account of a transfer in words: a table for a terminal or a notebook, and what a refusal says."""

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
from transferkit.errors import listed
from transferkit.layers import split_key
from transferkit.transfer._entry import BUCKETS, WRITTEN, Entry

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
    return re.split(r"(\d+)", name)


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


# What a refused transfer says: all problems at once, both sides of each, and what to do next.

UNTOUCHED = "the model is bit for bit as it was"

_SHOWN = 40  # rows of each kind; a wall of text hides the first line, which is usually the cause


def refusal(plan: Account, problems: Sequence[Entry]) -> str:
    """Return the message for a transfer that has problems.

    Args:
        plan: The plan.
        problems: Its entries that no rule explains.
    """
    missing = [entry for entry in problems if entry.bucket == "missing"]
    mismatched = [entry for entry in problems if entry.bucket == "mismatched"]
    fit = sum(entry.bucket in WRITTEN for entry in plan.entries)
    lines = [f"The transfer from {plan.origin.name} to {plan.target} was refused; {UNTOUCHED}."]
    if mismatched:
        rows = [_mismatch(entry) for entry in mismatched]
        lines += [f"mismatched: {_count(mismatched)} ({fit} tensors fit)", *_table(folded(rows))]
    if missing:
        what = f"missing: {_count(missing)}, selected in the target and absent in the source"
        lines += [what, *_table(rows_of(missing)), *_unused(plan)]
    steps = [
        *plan.advice,
        *_ways_to_name(plan, missing),
        *_ways_for_missing(missing),
        *_ways_for_mismatched(mismatched),
    ]
    return "\n".join(
        [*lines, "Next step:" if len(steps) == 1 else "Next step, one of:", *(f"  {s}" for s in steps)]
    )


def nothing_moves(plan: Account) -> str:
    """Return the message for a transfer that would move nothing, every missing tensor being allowed to be."""
    selected = plan.coverage.tensors[1]
    return "\n".join(
        [
            f"Nothing would be moved from {plan.origin.name} to {plan.target}; {UNTOUCHED}.",
            f"{selected} tensors are selected, and all of them are missing in the source and allowed to be.",
            *_unused(plan),
            "Next step, one of:",
            *(f"  {step}" for step in plan.advice),
            "  say how names correspond: mapping={'target name': 'source name'}, or mapping='structure'",
            "  look at what would happen: print(WeightTransfer(...).plan(model))",
        ]
    )


def _mismatch(entry: Entry) -> Row:
    """Return a row with both shapes, and both dtypes where the shapes agree."""
    target, source = entry.target, entry.sources[0] if entry.sources else None
    dtypes = target is not None and source is not None and target.shape == source.shape
    here = f"target {target.shape_text}{' ' + target.dtype if dtypes else ''}" if target else ""
    there = f"source {source}{' ' + source.dtype if dtypes else ''}" if source else "no source"
    why = f"handler {entry.handler!r} would make it fit" if entry.handler else ""
    if dtypes or not entry.reason.startswith("another shape"):
        why = entry.reason
    return Row("mismatched", entry.key, here, there, why)


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [("", row.layer, row.tensors, "; ".join(filter(None, (row.source, row.why)))) for row in rows]
    more = [f"  ... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return [*text_table(cells[:_SHOWN]), *more]


def _unused(plan: Account) -> list[str]:
    names = list(dict.fromkeys(split_key(key)[0] for key in plan.unexpected))
    if not names:
        return []
    layers = f"{len(names)} layer{'s' * (len(names) > 1)} of the source"
    return [f"unexpected: {layers} that nothing uses, {listed([repr(name) for name in names], 3)}"]


def _ways_to_name(plan: Account, missing: Sequence[Entry]) -> list[str]:
    """Return how to say that layers go by other names, where both sides have some left over."""
    if not missing or not plan.unexpected or plan.advice:
        return []
    name = split_key(missing[0].key)[0]
    if plan.mapping == "structure":
        return [
            f"say which source layer it is: mapping=ByStructure({{{name!r}: '...'}}), with a handler if it must be"
        ]
    if plan.mapping == "name":
        return [
            f"say how names correspond: mapping={{{name!r}: '...'}}, or let shapes tell: mapping='structure'"
        ]
    return []


def _ways_for_missing(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    globs = _globs(entries)
    python = repr(globs[0] if len(globs) == 1 else globs)
    return [
        f"leave what is missing as it is: allow_missing={python} (--allow_missing {' '.join(map(repr, globs))})"
    ]


def _ways_for_mismatched(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    names = list(dict.fromkeys(split_key(entry.key)[0] for entry in entries))
    shown = ", ".join(map(repr, names[:3])) + ", ..." * (len(names) > 3)
    handlers = list(dict.fromkeys(entry.handler for entry in entries if entry.handler))
    leave = [f"leave what does not fit as it is: select=... & ~by_name({shown})"] if names != [""] else []
    if handlers:
        return [f"convert it: handlers={handlers!r}", *leave]
    return [*leave, "convert it: handlers=[...], of those in transferkit.transfer.handlers or your own"]


def _globs(entries: Sequence[Entry]) -> list[str]:
    """Return a few globs for what is missing: the container that all share, or the layers, or the containers."""
    layers = list(dict.fromkeys(split_key(entry.key)[0] for entry in entries))
    first = layers[0].partition(".")[0]
    if len(layers) > 1 and all(name.startswith(f"{first}.") for name in layers):
        return [f"{first}.*"]
    if len(layers) <= 4:
        return layers
    return list(dict.fromkeys(f"{name.partition('.')[0]}*" for name in layers))[:6]


def _count(entries: Sequence[Entry]) -> str:
    layers = len({split_key(entry.key)[0] for entry in entries})
    tensors = f"{len(entries)} tensor{'s' * (len(entries) > 1)}"
    return f"{tensors} of {layers} layer{'s' * (layers > 1)}"
