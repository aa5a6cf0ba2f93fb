"""What a transfer would do, and whether it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transferkit.errors import TransferError
from transferkit.layers import split_key
from transferkit.transfer.account import Account
from transferkit.transfer.entry import MOVED, Entry
from transferkit.transfer.table import columns

UNTOUCHED = "The transfer was refused; the model is bit for bit as it was."


@dataclass(frozen=True)
class TransferPlan(Account):
    """What :meth:`WeightTransfer.apply` would do, from shapes alone: print it, compare it, store it."""

    @property
    def problems(self) -> tuple[Entry, ...]:
        """The entries that no rule explains: mismatched, or missing without being allowed to."""
        return tuple(
            entry
            for entry in self.entries
            if entry.bucket == "mismatched" or (entry.bucket == "missing" and not entry.allowed)
        )

    def check(self) -> None:
        """Raise what :meth:`WeightTransfer.apply` would raise for this plan.

        Raises:
            TransferError: Tensors are missing or mismatched, or nothing would be moved. The message lists all
                of them with what to do next.
        """
        problems = self.problems
        missing = [entry for entry in problems if entry.bucket == "missing"]
        mismatched = [entry for entry in problems if entry.bucket == "mismatched"]
        if problems:
            lines = [*_mismatched(mismatched), *_missing(missing, self), *_next(missing, mismatched)]
            raise TransferError("\n".join([UNTOUCHED, *lines]))
        if not any(entry.bucket in MOVED for entry in self.entries):
            raise TransferError(
                f"{UNTOUCHED}\nNothing would be moved from {self.origin.name} to {self.target}: of "
                f"{self.coverage.tensors[1]} selected tensors none has a source that fits.\n"
                "Next step: print(WeightTransfer(...).plan(model)); perhaps the names differ (mapping=...)"
            )


def _mismatched(entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    rows = []
    for entry in entries:
        source = f"source {entry.sources[0]}" if entry.sources else "no source"
        rows.append(("", f"target {entry.target}", source, entry.reason))
    return [f"{_count(entries)} mismatched:", *columns(rows)]


def _missing(entries: Sequence[Entry], plan: Account) -> list[str]:
    if not entries:
        return []
    rows = []
    for layer, members in _by_layer(entries).items():
        tensors = ", ".join(f"{split_key(e.key)[1]} {list(e.target.shape)}" for e in members if e.target)
        rows.append(("", layer, tensors, members[0].reason))
    return [f"{_count(entries)} of {plan.target} missing in {plan.origin.name}:", *columns(rows)]


def _next(missing: Sequence[Entry], mismatched: Sequence[Entry]) -> list[str]:
    steps = []
    if missing:
        globs = _globs(list(_by_layer(missing)))
        shown, flags = globs[0] if len(globs) == 1 else globs, " ".join(map(repr, globs))
        steps.append(f"leave what is missing as it is: allow_missing={shown!r} (--allow_missing {flags})")
    if mismatched:
        names = list(_by_layer(mismatched))
        shown = ", ".join(map(repr, names[:3])) + ", ..." * (len(names) > 3)
        steps.append(f"leave what is mismatched as it is: select=... & ~by_name({shown})")
        steps.append("convert it: name a handler, handlers=[...], or allow them all, on_mismatch='adapt'")
    return ["Next step:" if len(steps) == 1 else "Next step, one of:", *(f"  {step}" for step in steps)]


def _by_layer(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    layers: dict[str, list[Entry]] = {}
    for entry in entries:
        layers.setdefault(split_key(entry.key)[0], []).append(entry)
    return layers


def _count(entries: Sequence[Entry]) -> str:
    layers = len(_by_layer(entries))
    return f"{len(entries)} tensor{'s' * (len(entries) > 1)} of {layers} layer{'s' * (layers > 1)}"


def _globs(names: Sequence[str]) -> list[str]:
    """Return one glob for all names where they share their first part, else the names."""
    first = names[0].partition(".")[0]
    shared = len(names) > 1 and all(name.startswith(f"{first}.") for name in names)
    return [f"{first}.*"] if shared else list(names)
