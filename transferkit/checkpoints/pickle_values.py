"""What a pickle is read into: inert values, and records of what it would import, call and fetch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transferkit.errors import CheckpointError

MAX_DEPTH = 64
MAX_VALUES = 20_000_000


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that the pickle would make, and what it would then put into the result.

    Attributes:
        function: What would be called, a :class:`Global` in every honest file.
        arguments: With what.
        state: What would be given to ``__setstate__``, or ``None``.
        items: What would be appended, or the key-value pairs that would be set.
    """

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to something outside the pickle, such as a torch storage."""

    key: Any


def children_of(value: object) -> list[Any]:
    """Return what a value directly contains."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Call):
        return [value.function, value.arguments, value.state, *value.items]
    if isinstance(value, Persistent):
        return [value.key]
    return []


def check_graph(root: object) -> None:
    """Refuse a value that contains itself, is nested too deeply, or would be huge if nothing in it were shared.

    A few hundred bytes of pickle can name one list a billion times through lists of lists, and whoever walks
    that graph never ends. The check visits every object once.

    Raises:
        CheckpointError: With the reason.
    """
    done: dict[int, tuple[int, int]] = {}  # size and depth by id
    above: set[int] = set()
    pending: list[tuple[object, bool]] = [(root, False)]
    while pending:
        value, inside_is_done = pending.pop()
        if id(value) in above and not inside_is_done:
            raise CheckpointError("refused: the pickle holds an object that contains itself")
        if id(value) in done or not isinstance(value, dict | list | tuple | Call | Persistent):
            continue
        inside = children_of(value)
        if not inside_is_done:
            above.add(id(value))
            pending.append((value, True))
            pending.extend((child, False) for child in inside)
            continue
        sizes = [done.get(id(child), (1, 0)) for child in inside]
        size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if depth > MAX_DEPTH:
            raise CheckpointError(f"refused: the pickle is nested more than {MAX_DEPTH} deep")
        if size > MAX_VALUES:
            raise CheckpointError(f"refused: the pickle repeats its parts to more than {MAX_VALUES:,} values")
        above.discard(id(value))
        done[id(value)] = size, depth
