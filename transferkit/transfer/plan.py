"""What a transfer would do, and whether it may."""

from __future__ import annotations

from dataclasses import dataclass

from transferkit.errors import TransferError
from transferkit.transfer.account import Account
from transferkit.transfer.entry import MOVED, Entry
from transferkit.transfer.refusal import nothing_moves, refusal


@dataclass(frozen=True)
class TransferPlan(Account):
    """What :meth:`WeightTransfer.apply` would do, from shapes alone: print it, compare it, store it."""

    @property
    def problems(self) -> tuple[Entry, ...]:
        """The entries that no rule explains: mismatched, or missing without being allowed to."""
        return tuple(entry for entry in self.entries if entry.is_problem)

    def check(self) -> None:
        """Raise what :meth:`WeightTransfer.apply` would raise for this plan.

        Raises:
            TransferError: Tensors are missing or mismatched, or nothing would be moved. The message lists all
                of them with what to do next.
        """
        problems = self.problems
        if problems:
            raise TransferError(refusal(self, problems))
        if not any(entry.bucket in MOVED for entry in self.entries):
            raise TransferError(nothing_moves(self))
