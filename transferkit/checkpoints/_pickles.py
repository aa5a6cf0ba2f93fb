"""Read a pickle as data: no import, no call, nothing but inert values.

A pickle is a program for a small stack machine, some of whose instructions import and call. The machine here
runs that program and records each call instead of making it. The result consists of dicts, lists, tuples,
strings, numbers and ``Call`` records; the reader of a format decides what those records mean. So nothing in a
file can run, whatever it contains.

References:
    The instructions: CPython's ``pickletools.py``.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from transferkit.checkpoints._inert import (
    MAX_INSTRUCTIONS,
    MAX_REPEATED_TEXT,
    MAX_VALUES,
    Call,
    Global,
    Pair,
    Persistent,
    Pickle,
    check_graph,
    collisions,
    refuse_collisions,
)
from transferkit.errors import CheckpointError

MAX_CONTAINERS = 500_000
_LONGEST_NUMBER = 64  # characters of a number written as text, bytes of one in binary
_LONGEST_NAME = 1000  # characters of a module or of a name in one
_LONGEST_KEY = 16  # parts of a dict key that is a tuple
_JOBLIB_ARRAY = Global("joblib.numpy_pickle", "NumpyArrayWrapper")
_VIEWED = 4096  # bytes from this length on are left where they are


def read_pickle(buffer: bytes | memoryview, start: int = 0, *, scale: int = 1) -> Pickle:
    """Read the pickle that begins at ``start``; ``scale`` times as many instructions and objects are let through.

    Raises:
        CheckpointError: It is damaged, refers to itself, is nested or repeated beyond reason, or uses
            instructions that files of weights have no use for (extension codes, buffers outside the file).
    """
    machine = _Machine(memoryview(buffer), start, scale)
    try:
        value = machine.run()
    except CheckpointError:  # a refusal, which is a ValueError too
        raise
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError) as error:
        raise CheckpointError(f"damaged pickle at byte {machine.place}: {error!r}") from error
    check_graph(value, MAX_REPEATED_TEXT + len(machine.buffer), scale * MAX_VALUES)
    return Pickle(value, frozenset(machine.globals), start, machine.place)


class ByteReader:
    """A buffer and a position in it; every method reads there and moves on, never past the end."""

    def __init__(self, buffer: memoryview, place: int = 0) -> None:
        self.buffer = buffer
        self.place = place

    def read(self, count: int) -> memoryview:
        """Return the next ``count`` bytes as a view."""
        if not 0 <= count <= len(self.buffer) - self.place:
            raise ValueError(f"{count} bytes are announced, {len(self.buffer) - self.place} are left")
        self.place += count
        return self.buffer[self.place - count : self.place]

    def numbers(self, format: str) -> tuple[Any, ...]:
        """Return the numbers of a ``struct`` format."""
        return struct.unpack(format, self.read(struct.calcsize(format)))

    def number(self, format: str) -> Any:
        """Return the one number of a ``struct`` format."""
        return self.numbers(format)[0]

    def data(self, format: str) -> Any:
        """Return bytes preceded by their length; many of them as a view of the buffer."""
        found = self.read(self.number(format))
        return found if len(found) >= _VIEWED else bytes(found)

    def line(self) -> bytes:
        """Return the text up to the next line break."""
        begin = self.place
        for end in range(begin, len(self.buffer), 256):
            found = bytes(self.buffer[end : end + 256]).find(b"\n")
            if found >= 0:
                self.place = end + found + 1
                return bytes(self.buffer[begin : end + found])
        raise ValueError("a line without an end")

    def text(self, format: str) -> str:
        """Return UTF-8 text preceded by its length."""
        return str(self.read(self.number(format)), "utf-8", "surrogatepass")

    def decimal(self) -> str:
        """Return a number written as a line of text."""
        line = self.line()
        if len(line) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(line)} digits")
        return line.decode("ascii")

    def integer(self, format: str) -> int:
        """Return a signed integer preceded by its length."""
        length = self.number(format)
        if not 0 <= length <= _LONGEST_NUMBER:
            raise ValueError(f"a number of {length} bytes")
        return int.from_bytes(self.read(length), "little", signed=True)


class _Mark:
    """The place on the stack where a list of items begins."""


_MARK = _Mark()


class _Machine(ByteReader):
    """The stack machine: a stack, marks on it and a memo; ``_STEPS`` has the method of each instruction."""

    # Python's own machine imports names (GLOBAL), calls what was imported (REDUCE) and sets attributes (BUILD),
    # which is how a file runs code. This one pushes inert records of the name, the call and the state instead. It
    # counts what it makes, since a short program can ask for a great deal.

    def __init__(self, buffer: memoryview, start: int, scale: int) -> None:
        super().__init__(buffer, start)
        self.scale = scale
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: list[Any] = []
        self.globals: set[Global] = set()
        self.containers = self.collisions = self.instructions = 0

    def run(self) -> Any:
        most = self.scale * MAX_INSTRUCTIONS
        for self.instructions in range(most):
            code = self.read(1)[0]
            if code == _STOP:
                if len(self.stack) != 1:
                    raise ValueError(f"{len(self.stack)} values are left instead of one")
                return self.stack.pop()
            if code in _REFUSED:
                raise CheckpointError(f"refused: the pickle uses {_REFUSED[code]} at byte {self.place - 1}")
            _STEPS[code](self)
        raise CheckpointError(f"refused: the pickle has more than {most:,} instructions")

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_container(self, value: Any) -> None:
        self.containers += 1
        if self.containers > self.scale * MAX_CONTAINERS:
            raise CheckpointError(
                f"refused: the pickle makes more than {self.scale * MAX_CONTAINERS:,} objects"
            )
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value should be")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        begin = self.marks.pop()
        items = self.stack[begin + 1 :]
        del self.stack[begin:]
        return items

    # Instructions

    def mark(self) -> None:
        self.marks.append(len(self.stack))
        self.stack.append(_MARK)

    def discard(self) -> None:
        if self.stack.pop() is _MARK:
            self.marks.pop()

    def int_or_bool(self) -> None:
        text = self.decimal()
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def quoted(self) -> None:
        """Push a string literal of Python 2: bytes between quotes."""
        line = self.line()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise ValueError("a string without quotes")
        self.push(codecs.escape_decode(line[1:-1])[0])

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)][::-1]
        self.push_container(tuple(items))

    def dict_from(self, items: list[Any]) -> None:
        self.push_container({})
        self.set_items(items)

    # Items and keys for the result of a call are kept in the record of the call.

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Call):
            target = target.items
        if not isinstance(target, list):
            raise TypeError(f"items are appended to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target, keys = self.top(), [as_key(key) for key in items[::2]]
        if not isinstance(target, Call | dict):
            raise TypeError(f"keys are set on a {type(target).__name__}")
        held = target if isinstance(target, dict) else target.items
        last = next(reversed(held), None)
        self.collisions += collisions(keys, len(held), last[0] if isinstance(target, Call) and last else last)
        refuse_collisions(self.collisions)
        pairs = map(Pair, zip(keys, items[1::2], strict=True))
        held.update(pairs) if isinstance(held, dict) else held.extend(pairs)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    # Names and calls: recorded, never looked up and never made.

    def import_name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name to import that is no text")
        if max(len(module), len(name)) > _LONGEST_NAME:
            raise ValueError(f"a name to import of {max(len(module), len(name)):,} characters")
        found = Global(module, name)
        self.globals.add(found)
        self.push(found)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.import_name(module, name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple):
            raise TypeError("arguments that are no tuple")
        self.push_container(Call(function, arguments))

    def call_with_keywords(self) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        if not isinstance(arguments, tuple) or not isinstance(keywords, dict):
            raise TypeError("arguments that are no tuple, or keywords that are no dict")
        self.push_container(Call(function, arguments, None, [Pair(pair) for pair in keywords.items()]))

    def call_named_class(self) -> None:
        self.import_name(str(self.line(), "utf-8"), str(self.line(), "utf-8"))
        self.push_container(Call(self.pop(), tuple(self.pop_mark())))

    def call_marked_class(self) -> None:
        function, *arguments = self.pop_mark()
        self.push_container(Call(function, tuple(arguments)))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call):
            raise TypeError(f"state is given to a {type(target).__name__}")
        if target.state is not None:
            raise ValueError("a second state for one object")
        target.state = state
        if target.function == _JOBLIB_ARRAY and isinstance(state, dict):
            target.items = [self.joblib_data(state)]

    def joblib_data(self, state: dict[Any, Any]) -> Any:
        """Return the data that joblib writes behind the record of an array: aligned bytes, or a pickle of objects."""
        code = state["dtype"].arguments[0]
        if not isinstance(code, str) or not re.fullmatch(r"[a-zA-Z]\d{0,4}", code):
            raise ValueError(f"an array of dtype {code!r}")
        kind = np.dtype(code)
        if kind.hasobject:
            inner = read_pickle(self.buffer, self.place)
            self.place = inner.end
            self.globals |= inner.globals
            return inner.value
        if state.get("numpy_array_alignment_bytes") is not None:
            self.read(self.number("<B"))
        sides = state["shape"]
        if not isinstance(sides, tuple) or not all(
            isinstance(side, int) and 0 <= side < 2**40 for side in sides
        ):
            raise ValueError(f"an array of shape {sides!r}")
        return self.read(math.prod(sides) * kind.itemsize)

    def refer(self) -> None:
        """Push a reference to what lies outside; torch's to a module's class, with its source, is the class."""
        key = self.pop()
        is_class = isinstance(key, tuple) and len(key) == 4 and key[0] in ("module", b"module")
        if is_class and isinstance(key[1], Global):
            self.push(key[1])
        else:
            self.push_container(Persistent(key))

    def put(self, index: int) -> None:
        if not 0 <= index <= self.instructions:  # who numbers what is kept never skips so many
            raise ValueError(f"a memo of number {index}")
        self.memo += [_MARK] * (index + 1 - len(self.memo))
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if not 0 <= index < len(self.memo) or self.memo[index] is _MARK:
            raise ValueError(f"there is no memo of number {index}")
        self.push(self.memo[index])


def as_key(key: Any) -> Hashable:
    """Return a dict key; refuse all but scalars, calls and short flat tuples of them, whose hash is cheap."""
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) > _LONGEST_KEY:
        raise TypeError(f"a dict key of {len(parts)} parts")
    if not all(part is None or isinstance(part, str | bytes | int | float | Global | Call) for part in parts):
        raise TypeError("a dict key that is a container")
    return key  # type: ignore[no-any-return]


_REFUSED = {
    0x82: "extension codes (EXT1)",
    0x83: "extension codes (EXT2)",
    0x84: "extension codes (EXT4)",
    0x97: "buffers outside the file (NEXT_BUFFER)",
}
_STOP = ord(".")

_STEPS: dict[int, Callable[[_Machine], None]] = {
    ord("("): lambda m: m.mark(),
    ord("0"): lambda m: m.discard(),
    ord("1"): lambda m: _ignore(m.pop_mark()),
    ord("2"): lambda m: m.push(m.top()),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("I"): lambda m: m.int_or_bool(),
    ord("L"): lambda m: m.push(int(m.decimal().removesuffix("L"))),
    ord("F"): lambda m: m.push(float(m.decimal())),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("G"): lambda m: m.push(m.number(">d")),
    0x8A: lambda m: m.push(m.integer("<B")),
    0x8B: lambda m: m.push(m.integer("<i")),
    ord("S"): lambda m: m.quoted(),
    ord("T"): lambda m: m.push(m.data("<i")),
    ord("U"): lambda m: m.push(m.data("<B")),
    ord("B"): lambda m: m.push(m.data("<I")),
    ord("C"): lambda m: m.push(m.data("<B")),
    0x8E: lambda m: m.push(m.data("<Q")),
    0x96: lambda m: m.push(m.data("<Q")),
    0x98: lambda m: None,  # a buffer made read-only is the same data
    ord("V"): lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    ord("X"): lambda m: m.push(m.text("<I")),
    0x8C: lambda m: m.push(m.text("<B")),
    0x8D: lambda m: m.push(m.text("<Q")),
    ord("]"): lambda m: m.push_container([]),
    ord("l"): lambda m: m.push_container(m.pop_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("}"): lambda m: m.push_container({}),
    ord("d"): lambda m: m.dict_from(m.pop_mark()),
    ord("s"): lambda m: m.set_item(),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    0x8F: lambda m: m.push_container(Call(Global("builtins", "set"), ())),
    0x90: lambda m: m.append(m.pop_mark()),
    0x91: lambda m: m.push_container(Call(Global("builtins", "frozenset"), (), None, m.pop_mark())),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push_container(tuple(m.pop_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("c"): lambda m: m.import_name(str(m.line(), "utf-8"), str(m.line(), "utf-8")),
    0x93: lambda m: m.stack_global(),
    ord("R"): lambda m: m.call(),
    0x81: lambda m: m.call(),
    0x92: lambda m: m.call_with_keywords(),
    ord("i"): lambda m: m.call_named_class(),
    ord("o"): lambda m: m.call_marked_class(),
    ord("b"): lambda m: m.build(),
    ord("P"): lambda m: m.push_container(Persistent(str(m.line(), "ascii"))),
    ord("Q"): lambda m: m.refer(),
    ord("p"): lambda m: m.put(int(m.decimal())),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),
    ord("g"): lambda m: m.get(int(m.decimal())),
    ord("h"): lambda m: m.get(m.number("<B")),
    ord("j"): lambda m: m.get(m.number("<I")),
    0x80: lambda m: _ignore(m.read(1)),
    0x95: lambda m: _ignore(m.read(8)),
}


def _ignore(value: object) -> None:
    """Read and forget."""
