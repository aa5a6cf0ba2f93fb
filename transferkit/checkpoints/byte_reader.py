"""Numbers, text and raw bytes out of a buffer, none of them longer than the buffer is."""

from __future__ import annotations

import struct
from typing import Any

_LONGEST_NUMBER = 64  # characters of a number written as text, bytes of one in binary
_VIEWED = 4096  # bytes from this length on are left where they are


class ByteReader:
    """A buffer and a place in it. Every method reads at the place and moves it on.

    Args:
        buffer: The bytes.
        place: Where to begin.
    """

    def __init__(self, buffer: memoryview, place: int = 0) -> None:
        self.buffer = buffer
        self.place = place

    def read(self, count: int) -> memoryview:
        """Return the next ``count`` bytes as a view."""
        if not 0 <= count <= len(self.buffer) - self.place:
            raise ValueError(f"{count} bytes are announced, {len(self.buffer) - self.place} are left")
        self.place += count
        return self.buffer[self.place - count : self.place]

    def number(self, format: str) -> Any:
        """Return one number of a ``struct`` format."""
        return struct.unpack(format, self.read(struct.calcsize(format)))[0]

    def data(self, format: str) -> Any:
        """Return a length's worth of bytes; many of them as a view of the buffer."""
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
        """Return a length's worth of UTF-8."""
        return str(self.read(self.number(format)), "utf-8", "surrogatepass")

    def decimal(self) -> str:
        """Return a number written as a line of text."""
        line = self.line()
        if len(line) > _LONGEST_NUMBER:
            raise ValueError(f"a number of {len(line)} digits")
        return line.decode("ascii")

    def integer(self, format: str) -> int:
        """Return a length's worth of a signed integer."""
        length = self.number(format)
        if not 0 <= length <= _LONGEST_NUMBER:
            raise ValueError(f"a number of {length} bytes")
        return int.from_bytes(self.read(length), "little", signed=True)
