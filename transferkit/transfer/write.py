"""The only place that changes a model: reversible steps, then all tensors in one call that either happens or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Write:
    """One tensor to be written: its key, where, and what."""

    key: str
    destination: Tensor
    value: Tensor

    def onto(self, destination: Tensor | None) -> Write:
        """Return the same write onto another tensor, if there is one."""
        return self if destination is None else replace(self, destination=destination)


class Transaction:
    """Changes that all happen or none of them does.

    Steps that can be undone come first, :meth:`write` comes last. Whatever is raised before that write is made,
    an interrupt too, undoes the steps in reverse order.

    Example:
        >>> done, weight = [], torch.zeros(2)
        >>> with Transaction() as transaction:
        ...     transaction.step(lambda: done.append(1), undo=done.clear)
        ...     transaction.write([Write("weight", weight, torch.ones(2))])
        >>> done, weight
        ([1], tensor([1., 1.]))
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._written: Callable[[], bool] = lambda: False

    def step(self, do: Callable[[], object], undo: Callable[[], object]) -> None:
        """Do something that ``undo`` takes back, also where it was broken off half-way."""
        self._undo.append(undo)
        do()

    def write(self, writes: Sequence[Write]) -> None:
        """Write all tensors in place.

        All that can fail was done before: shapes and dtypes fit, and the values are at hand. What is left is one
        call, and Python handles an interrupt only between calls; so no old values are kept, which would take
        the model's size in memory once more. Only a copy that may have to allocate, between devices and layouts,
        can still fail; those come first and keep what they overwrite.
        """
        allocating = [write for write in writes if _may_allocate(write)]
        plain = [write for write in writes if not _may_allocate(write)]
        kept = [Write(write.key, write.destination, write.destination.clone()) for write in allocating]
        old_versions = [write.destination._version for write in plain]
        # An interrupt during the last call is raised right after it. The versions tell then that it was made.
        self._written = lambda: any(
            write.destination._version != old for write, old in zip(plain, old_versions, strict=True)
        )
        self.step(lambda: _copy(allocating), undo=lambda: _copy(kept))
        _copy(plain)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self._written():
            for undo in reversed(self._undo):
                undo()


def _copy(writes: Sequence[Write]) -> None:
    """Copy in one call. Detached tensors are the same memory, and their writes count in the same version."""
    destinations = [write.destination.detach() for write in writes]
    if destinations:
        torch._foreach_copy_(destinations, [write.value for write in writes])


def _may_allocate(write: Write) -> bool:
    value, destination = write.value, write.destination
    if value.device == destination.device:
        return False
    return value.dtype != destination.dtype or not (value.is_contiguous() and destination.is_contiguous())
