"""What a refused transfer says: all problems at once, both sides of each, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.layers import split_key
from transferkit.transfer.account import Account
from transferkit.transfer.entry import WRITTEN, Entry
from transferkit.transfer.rows import Row, folded, rows_of
from transferkit.transfer.table import columns

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
    why = entry.reason if dtypes else f"handler {entry.handler!r} would make it fit" if entry.handler else ""
    return Row("mismatched", entry.key, here, there, why)


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [("", row.layer, row.tensors, "; ".join(filter(None, (row.source, row.why)))) for row in rows]
    more = [f"  ... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return [*columns(cells[:_SHOWN]), *more]


def _unused(plan: Account) -> list[str]:
    names = list(dict.fromkeys(split_key(key)[0] for key in plan.unexpected))
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    layers = f"{len(names)} layer{'s' * (len(names) > 1)} of the source"
    return [f"unexpected: {layers} that nothing uses, {', '.join(map(repr, names[:3]))}{more}"]


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
