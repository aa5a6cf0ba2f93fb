"""What a refused transfer says: all problems at once, both sides of each, and next steps that work as they stand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from glob import escape
from typing import TYPE_CHECKING

from transferkit.display import text_table
from transferkit.errors import listed
from transferkit.layers import split_key
from transferkit.transfer._entry import WRITTEN, Entry
from transferkit.transfer._table import Row, folded, rows_of
from transferkit.transfer.select import names_meant

if TYPE_CHECKING:
    from transferkit.transfer.account import Account

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
        *_ways_for_missing(plan, missing),
        *_ways_to_leave(plan, mismatched),
        *_ways_to_convert(problems),
    ]
    return "\n".join(
        [*lines, "Next step:" if len(steps) == 1 else "Next step, one of:", *(f"  {s}" for s in steps)]
    )


def nothing_moves(plan: Account) -> str:
    """Return the message for a transfer that would move nothing, every tensor being excused."""
    selected = plan.coverage.tensors[1]
    excused = f"{selected} tensors are selected, and all of them are missing in the source and allowed to be."
    return "\n".join(
        [
            f"Nothing would be moved from {plan.origin.name} to {plan.target}; {UNTOUCHED}.",
            excused if selected else "All tensors that are selected are kept as they are.",
            *_unused(plan),
            "Next step, one of:",
            *(f"  {step}" for step in plan.advice),
            "  say how names correspond: mapping={'target name': 'source name'}"
            + ", or mapping='structure'" * (plan.mapping != "structure"),
            "  look at what would happen: print(WeightTransfer(...).plan(model))",
        ]
    )


def _mismatch(entry: Entry) -> Row:
    """Return a row with both shapes, and both dtypes where the shapes agree."""
    target, source = entry.target, entry.sources[0] if entry.sources else None
    dtypes = target is not None and source is not None and target.shape == source.shape
    here = f"target {target.shape_text}{' ' + target.dtype if dtypes else ''}" if target else ""
    there = f"source {source}{' ' + source.dtype if dtypes else ''}" if source else "no source"
    return Row(
        "mismatched", entry.key, here, there, entry.reason.removeprefix("another shape").removeprefix("; ")
    )


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


def _ways_for_missing(plan: Account, missing: Sequence[Entry]) -> list[str]:
    """Return how to excuse what is missing, and nothing else."""
    if not missing:
        return []
    globs = _globs_of(plan, missing)
    options = " ".join(map(repr, globs))
    return [f"leave what is missing as it is: allow_missing={_python(globs)} (--allow_missing {options})"]


def _ways_to_leave(plan: Account, mismatched: Sequence[Entry]) -> list[str]:
    """Return how to leave layers as they are, and how to leave single tensors, where it comes to that."""
    if not mismatched:
        return []
    names = list(dict.fromkeys(split_key(entry.key)[0] for entry in mismatched))
    steps = []
    selection = plan.rules[0][0]
    if "" not in names and all(text.endswith(")") for text, _ in plan.rules):  # a function cannot be repeated
        globs = globs_for(names, [name for name in _layers(plan) if name not in names])
        select = (
            "" if selection == "every()" else f"({selection}) & " if " " in selection else f"{selection} & "
        )
        steps.append(
            f"leave what does not fit as it is: select={select}~by_name({', '.join(map(repr, globs))})"
        )
    partly = any(split_key(entry.key)[0] in names for entry in plan.entries if entry.bucket in WRITTEN)
    if partly or not steps:
        globs = globs_for([entry.key for entry in mismatched], _keys(plan, mismatched))
        steps.append(
            f"leave only these tensors as they are: keep={_python(globs)} (--keep {' '.join(map(repr, globs))})"
        )
    return steps


def _ways_to_convert(problems: Sequence[Entry]) -> list[str]:
    handlers = list(dict.fromkeys(entry.handler for entry in problems if entry.handler))
    steps = [f"convert it: handlers={handlers!r}"] if handlers else []
    steps += dict.fromkeys(entry.advice for entry in problems if entry.advice)
    if steps or all(entry.bucket == "missing" for entry in problems):
        return steps
    return ["convert it: handlers=[...], of those in transferkit.transfer.handlers or your own"]


def _count(entries: Sequence[Entry]) -> str:
    layers = len({split_key(entry.key)[0] for entry in entries})
    tensors = f"{len(entries)} tensor{'s' * (len(entries) > 1)}"
    return f"{tensors} of {layers} layer{'s' * (layers > 1)}"


# Globs that name what they are to name, and nothing else that the plan moves.


def _globs_of(plan: Account, entries: Sequence[Entry]) -> list[str]:
    """Return globs on names and keys that match some entries and none of the others that are selected.

    A layer all of whose tensors are among them goes by its name, and the root module's tensors each by its key.
    """
    others = _keys(plan, entries)
    partly = {split_key(key)[0] for key in others} | {""}
    names = [entry.key if (name := split_key(entry.key)[0]) in partly else name for entry in entries]
    return globs_for(names, [*others, *partly])


def globs_for(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Return globs that together match all of some names and none of others.

    Example:
        >>> globs_for(["head.0", "head.2", "norm", "a[0]"], ["body.0", "body.norm"])
        ['head.*', 'norm', 'a[0]']
    """
    left, globs = list(dict.fromkeys(names)), []
    while left:
        served = {left[0]: left[:1]}
        for glob in _candidates(left[0]):
            if not names_meant(glob, others):
                served[glob] = [name for name in left if name in names_meant(glob, left)]
        best = max(served, key=lambda glob: len(served[glob]))
        globs.append(best)
        left = [name for name in left if name not in served[best]]
    return globs


def _candidates(name: str) -> Iterator[str]:
    """Yield what may also match others: all in the same containers, and all of the same last name."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        yield f"{escape('.'.join(parts[:count]))}.*"
    if len(parts) > 1:
        yield f"*.{escape(parts[-1])}"


def _python(globs: Sequence[str]) -> str:
    return repr(globs[0] if len(globs) == 1 else list(globs))


def _keys(plan: Account, without: Sequence[Entry]) -> list[str]:
    """Return the keys of the target tensors that are selected, without some."""
    left_out = {entry.key for entry in without}
    selected = [entry for entry in plan.entries if entry.target is not None and entry.bucket != "skipped"]
    return [entry.key for entry in selected if entry.key not in left_out]


def _layers(plan: Account) -> list[str]:
    return list(dict.fromkeys(split_key(key)[0] for key in _keys(plan, ())))
