"""The inert values that a pickle is read into, and how many of them a file may make.

A few bytes can name one part of a file in a million places, or choose dict keys that all collide. What is held to
these bounds is walked, copied and printed in time and memory in proportion to the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transferkit.errors import CheckpointError

MAX_DEPTH = 64
MAX_INSTRUCTIONS = 2_000_000
MAX_VALUES = MAX_INSTRUCTIONS  # what nothing repeats takes an instruction each
MAX_REPEATED_TEXT = 1 << 26  # bytes of text beyond those in the file, where one string stands in many places
MAX_COLLISIONS = 50_000_000  # comparisons of dict keys, if all whose hashes a file can choose are chosen alike


@dataclass(frozen=True)
class Global:
    """A name that the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_CONTAINERS = (Global("collections", "OrderedDict"), Global("collections", "defaultdict"))


@dataclass(eq=False, repr=False)  # what refers to itself in many ways has no text
class Call:
    """A call that the pickle would make, and what it would then put into the result."""

    function: Any  # a Global in every honest file
    arguments: tuple[Any, ...]
    state: Any = None  # the argument of __setstate__
    items: list[Any] = field(default_factory=list)  # items appended, or pairs of key and value set

    @property
    def is_object(self) -> bool:
        """Whether it makes an object with attributes, which honest files let refer to itself."""
        return self.function not in _CONTAINERS and isinstance(self.state, dict | tuple)


class Pair(tuple[Any, Any]):
    """A key and its value, set on the result of a call; unlike a tuple that was appended to it."""


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to something outside the pickle, such as a torch storage."""

    key: Any


@dataclass(eq=False, repr=False)
class Inert:
    """What stands for an object whose class is not known here: the name of the class and what the object held."""

    name: str
    content: Any = field(default_factory=dict)  # attributes and items by name, or what it was made of
    unreadable: str = ""  # what it is, where it is a tensor that is not a plain block of numbers

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pickle:
    """One pickle, read."""

    value: Any
    globals: frozenset[Global]  # every name that it would import
    start: int  # its place in the buffer
    end: int


def check_graph(root: object, most_text: int, most_values: int = MAX_VALUES) -> None:
    """Refuse a value that contains itself, is nested too deeply, or would be huge if nothing in it were shared.

    An object with attributes may contain itself, as a module whose trainer holds the module; each is looked at once.

    A few hundred bytes of pickle can name one list a billion times through lists of lists, and whoever walks
    that graph never ends; or one long string ten thousand times, of which whoever copies it fills the memory. The
    check visits every object once, children before parents, and adds up values and bytes of text. What is called is
    made once, so its text counts once: two names for one array are a tied weight.

    Raises:
        CheckpointError: With the reason.
    """
    done: dict[int, tuple[int, int, int]] = {}  # values, bytes of text and depth by id
    above: set[int] = set()
    in_calls = in_objects = 0
    pending: list[tuple[object, bool]] = [(root, False)]
    while pending:
        value, inside_is_done = pending.pop()
        if id(value) in above and not inside_is_done:
            if isinstance(value, Call) and value.is_object:
                continue
            raise CheckpointError("refused: the pickle holds an object that contains itself")
        if id(value) in done or not isinstance(value, dict | list | tuple | Call | Persistent):
            continue
        inside = children_of(value)
        if not inside_is_done:
            above.add(id(value))
            pending.append((value, True))
            pending.extend((child, False) for child in inside)
            continue
        sizes = [done.get(id(child)) or (1, _text_bytes(child), 0) for child in inside]
        size, text = 1 + sum(size for size, _, _ in sizes), sum(text for _, text, _ in sizes)
        depth = 1 + max((depth for _, _, depth in sizes), default=0)
        if depth > MAX_DEPTH:
            raise CheckpointError(f"refused: the pickle is nested more than {MAX_DEPTH} deep")
        if isinstance(value, Call):
            in_calls, text = in_calls + text, 0
        if isinstance(value, Call) and value.is_object:
            in_objects, size, depth = in_objects + size, 1, 1
        if size + in_objects > most_values:
            raise CheckpointError(f"refused: the pickle repeats its parts to more than {most_values:,} values")
        if text + in_calls > most_text:
            raise CheckpointError(f"refused: the pickle repeats its strings to more than {most_text:,} bytes")
        above.discard(id(value))
        done[id(value)] = size, text, depth


def _text_bytes(value: object) -> int:
    """Return the length of a string; data that is viewed in place is not copied with every mention."""
    return len(value) if isinstance(value, str | bytes) else 0


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


def collisions(keys: Iterable[Any], held: int, last: Any = None) -> int:
    """Return how many comparisons it may take to put keys into a dict of ``held`` others, the ``last`` of them given.

    Strings and objects have hashes that no file can foresee. A number's is known, and a dict whose numbers all have
    one hash takes the square of their count. Numbers that count up, as those of parameters do, cost nothing.
    """
    loose = 0
    for key in keys:
        if not isinstance(key, str | bytes | Call):
            loose += not (isinstance(key, int) and isinstance(last, int) and key == last + 1)
            held += 1
        last = key
    return loose * held


def refuse_collisions(count: int) -> None:
    """Refuse dicts that may take so many comparisons of keys."""
    if count > MAX_COLLISIONS:
        raise CheckpointError("refused: the pickle holds a dict of too many numbers in no order")
