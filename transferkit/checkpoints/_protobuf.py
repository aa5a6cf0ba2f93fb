"""Google's protocol buffers as they lie in a file: fields by number, whose bytes are viewed where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transferkit.errors import CheckpointError

MAX_FIELDS = 3_000_000  # of a whole file; the graphs of the largest models have a half of it
_MESSAGE = 6  # fields that a message counts for, as which it takes time and memory
_MOST_TO_RECOGNIZE = 100_000
_FIXED = {1: 8, 5: 4}  # bytes of a field by its wire type


class Message:
    """The fields of one message by number, in the order of the file; a message in it is read when it is asked for.

    Args:
        raw: The bytes.
        left: How many fields the file may still have, counted down; what is in this message counts on.

    Raises:
        CheckpointError: The bytes are no message, or there are too many fields.
    """

    def __init__(self, raw: memoryview, left: list[int] | None = None) -> None:
        self._left = [MAX_FIELDS] if left is None else left
        self._left[0] -= _MESSAGE
        self.fields: dict[int, list[int | memoryview]] = {}
        place = 0
        while place < len(raw):
            tag, place = varint(raw, place)
            value, place = _value(raw, place, tag & 7)
            self.fields.setdefault(tag >> 3, []).append(value)
            self._left[0] -= 1
            if self._left[0] < 0:
                raise CheckpointError("refused: a protocol buffer of too many fields")

    def __contains__(self, number: int) -> bool:
        return number in self.fields

    def views(self, number: int) -> list[memoryview]:
        """Return the bytes of each value of a field."""
        found = self.fields.get(number, [])
        if any(isinstance(value, int) for value in found):
            raise CheckpointError(f"damaged: field {number} of a protocol buffer is a number")
        return found  # type: ignore[return-value]

    def messages(self, number: int) -> list[Message]:
        """Return each value of a field as a message."""
        return [Message(view, self._left) for view in self.views(number)]

    def message(self, number: int) -> Message:
        """Return the only value of a field as a message, an empty one where there is none."""
        found = self.messages(number)
        if len(found) > 1:
            raise CheckpointError(f"damaged: field {number} of a protocol buffer stands there twice")
        return found[0] if found else Message(memoryview(b""), self._left)

    def texts(self, number: int) -> list[str]:
        """Return each value of a field as text."""
        return [str(view, "utf-8", "backslashreplace") for view in self.views(number)]

    def text(self, number: int) -> str:
        """Return the last value of a field as text."""
        return self.texts(number)[-1] if number in self else ""

    def ints(self, number: int) -> list[int]:
        """Return the signed numbers of a field, packed or one by one."""
        return list(map(int, self.int_array(number)))

    def int_array(self, number: int) -> NDArray[np.int64]:
        """Return the signed numbers of a field, packed or one by one, as an array."""
        found = self.fields.get(number, [])
        if all(isinstance(value, int) for value in found):
            return np.array(found, np.uint64).view(np.int64)
        pieces = [
            np.array([value], np.uint64).view(np.int64) if isinstance(value, int) else varints(value)
            for value in found
        ]
        return np.concatenate(pieces)

    def number(self, number: int, default: int = 0) -> int:
        """Return the last number of a field."""
        return ([default] if number not in self else self.ints(number))[-1]

    def array(self, number: int, dtype: str) -> NDArray[np.generic]:
        """Return the numbers of fixed width of a field, packed or one by one: a view where they are in one piece."""
        pieces = self.views(number)
        if any(len(piece) % np.dtype(dtype).itemsize for piece in pieces):
            raise CheckpointError(f"damaged: field {number} of a protocol buffer ends within a number")
        arrays = [np.frombuffer(piece, dtype) for piece in pieces]
        return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, dtype), *arrays])


def varint(raw: memoryview, place: int) -> tuple[int, int]:
    """Return the number of variable length at a place, and the place after it."""
    number = 0
    for shift, byte in enumerate(raw[place : place + 10]):
        number |= (byte & 127) << 7 * shift
        if byte < 128:
            return number & 0xFFFF_FFFF_FFFF_FFFF, place + shift + 1
    raise CheckpointError("damaged: a number without an end")


def varints(raw: memoryview) -> NDArray[np.int64]:
    """Return packed numbers of variable length."""
    data = np.frombuffer(raw, np.uint8)
    ends = np.flatnonzero(data < 128)
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    longest = int((ends - starts).max(initial=0))
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1 or longest > 9):
        raise CheckpointError("damaged: a number without an end")
    found = np.zeros(len(ends), np.uint64)
    for step in range(longest + 1 if len(ends) else 0):
        has = starts + step <= ends
        found[has] |= (data[starts[has] + step] & 127).astype(np.uint64) << np.uint64(7 * step)
    return found.view(np.int64)


def message_in(path: Path) -> Message | None:
    """Return the message that a whole file is, ``None`` where it is none."""
    try:
        return Message(file_bytes(path), [_MOST_TO_RECOGNIZE])
    except (CheckpointError, OSError, ValueError):
        return None


def file_bytes(path: Path) -> memoryview:
    """Return the bytes of a file, mapped."""
    return np.memmap(path, np.uint8, "c").data if path.stat().st_size else memoryview(b"")


def _value(raw: memoryview, place: int, wire: int) -> tuple[int | memoryview, int]:
    if wire == 0:
        return varint(raw, place)
    size = _FIXED.get(wire, 0)
    if wire == 2:
        size, place = varint(raw, place)
    elif not size:
        raise CheckpointError(f"damaged: a protocol buffer with a field of type {wire}")
    if size > len(raw) - place:
        raise CheckpointError("damaged: a protocol buffer that ends too early")
    return raw[place : place + size], place + size
