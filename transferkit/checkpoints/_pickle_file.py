"""Bare pickles that are not torch's: neon's model files, and the dicts of numpy arrays of some model zoos."""

from __future__ import annotations

import gzip
import math
import mmap
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transferkit.checkpoints._pickles import Call, Global, Pickle, read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints.neon._reader import is_neon, neon_contents
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

GZIP = b"\x1f\x8b"
_LARGEST_SURPRISE = 1 << 25  # bytes that a gzip file may hold however small it is
_LARGEST_RATIO = 20  # weights hardly compress

# The first bytes of a pickle of a dict or list: a protocol number and an instruction that makes one of them; in
# protocols 0 and 1 the instruction alone.
_BEGINNING = re.compile(rb"\x80[\x02-\x05][\x95}\](c]|\((dp?|lp?)\d*\n|}q|\]q|c[a-zA-Z_.]+\n", re.DOTALL)
_PLAIN_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")

_KNOWN = frozenset(
    [Global("numpy", name) for name in ("ndarray", "dtype")]
    + [Global(module, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")]
    + [Global(module, "_frombuffer") for module in _BUFFER_MODULES]
    + [Global(module, name) for module in _BUILTINS for name in ("set", "frozenset", "bytearray", "bytes")]
    + [Global("collections", "OrderedDict"), Global("_codecs", "encode")]
)


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle."""
    return _BEGINNING.match(head) is not None


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(GZIP) or looks_like_pickle(head)


@register_reader("pickle", matches=_matches, suffixes=(".p", ".prm", ".pkl", ".pickle"))
def read_pickle_file(path: Path, options: ReadOptions) -> Contents:
    """Read a pickle of containers and numpy arrays, also gzipped; nothing in it is imported or called."""
    saved = read_plain_pickle(_buffer(path))
    if is_neon(saved):
        return neon_contents(saved, options)
    return contents_of(saved, key=options.key)


def _buffer(path: Path) -> bytes | memoryview:
    """Return the bytes of a file: mapped, or unpacked within reason."""
    with path.open("rb") as file:
        if file.read(2) == GZIP:
            return _unpacked(path)
        if path.stat().st_size == 0:
            raise CheckpointError("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unpacked(path: Path) -> bytes:
    limit = max(_LARGEST_SURPRISE, _LARGEST_RATIO * path.stat().st_size)
    try:
        with gzip.open(path) as file:
            unpacked = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CheckpointError(f"damaged gzip file: {error}") from error
    if len(unpacked) > limit:
        raise CheckpointError(
            f"refused: unpacked it would be over {limit:,} bytes, {_LARGEST_RATIO} times its size"
        )
    if not looks_like_pickle(unpacked[:64]):
        raise CheckpointError("a gzip file that holds no pickle; unpack it (gunzip) and read what is inside")
    return unpacked


def read_plain_pickle(buffer: bytes | memoryview) -> Any:
    """Return what a pickle holds: dicts with string keys, lists, tuples, strings, numbers and numpy arrays.

    Python 2's strings become ``str``. The arrays are copies, since in the file they are not aligned as a tensor
    must be.

    Raises:
        CheckpointError: It would import anything else, or its arrays do not match their data.
    """
    pickle = read_pickle(buffer)
    refuse_unknown(pickle, _KNOWN)
    return _Reader(len(buffer)).plain(pickle.value)


def refuse_unknown(pickle: Pickle, known: frozenset[Global]) -> None:
    """Refuse a pickle that would import anything beyond ``known``, and name all of it."""
    blocked = sorted(str(name) for name in pickle.globals - known)
    if blocked:
        raise CheckpointError(f"refused: reading it the ordinary way would import {listed(blocked)}")


class _Reader:
    """Turns records of calls into values. An object that occurs twice is one object in the result too."""

    def __init__(self, size: int) -> None:
        self.bytes_left = size  # an honest array's bytes are in the file, and no two arrays share them
        self.done: dict[int, Any] = {}

    def plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.once(value, lambda: {_text(key): self.plain(item) for key, item in value.items()})
        if isinstance(value, list):
            return self.once(value, lambda: [self.plain(item) for item in value])
        if isinstance(value, tuple):
            return self.once(value, lambda: tuple(self.plain(item) for item in value))
        if isinstance(value, Call):
            return self.once(value, lambda: self.called(value))
        if isinstance(value, bytes | memoryview):
            return str(value, "latin1")
        if value is None or isinstance(value, str | int | float):
            return value
        raise CheckpointError(f"refused: the pickle holds a {type(value).__name__} where a value should be")

    def once(self, value: Any, make: Any) -> Any:
        if id(value) not in self.done:
            self.done[id(value)] = make()
        return self.done[id(value)]

    def called(self, call: Call) -> Any:
        if not isinstance(call.function, Global):
            raise CheckpointError("refused: the pickle calls something that is not a name")
        name, arguments = call.function.name, call.arguments
        try:
            if name == "_reconstruct":
                return self.array(*_array_state(call.state))
            if name == "_frombuffer":
                data, dtype, shape, order = arguments
                return self.array(shape, dtype, order == "F", data)
            if name == "scalar":
                dtype, data = arguments
                return self.array((), dtype, False, data).item()
            if name == "OrderedDict":
                pairs = [*arguments[0], *call.items] if arguments else call.items
                return {_text(key): self.plain(value) for key, value in pairs}
            if name in ("set", "frozenset"):
                return [self.plain(item) for item in [*(arguments[0] if arguments else ()), *call.items]]
            if name in ("encode", "bytearray", "bytes"):
                return str(_data(call), "latin1")
        except (TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"damaged pickle: {call.function}: {error}") from error
        raise CheckpointError(f"refused: the pickle calls {call.function}")

    def array(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> NDArray[Any]:
        """Return an array after checking its declared size against the bytes that are there."""
        kind, raw = _dtype(dtype), _data(data)
        if not isinstance(shape, tuple) or not all(
            isinstance(side, int) and 0 <= side < 2**40 for side in shape
        ):
            raise ValueError(f"an array of shape {shape!r}")
        if len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} and {kind} with {len(raw)} bytes of data")
        self.bytes_left -= len(raw)
        if self.bytes_left < 0:
            raise ValueError("arrays with more data than the file holds")
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="), copy=True)
        return flat.reshape(shape, order="F" if fortran else "C")


def _array_state(state: Any) -> tuple[Any, ...]:
    """Return (shape, dtype, fortran, data) of an array's pickled state."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise ValueError("an array without a state")
    return state[-4:]


def _dtype(call: Any) -> np.dtype[Any]:
    """Return a dtype of plain numbers."""
    if not isinstance(call, Call) or call.function != Global("numpy", "dtype"):
        raise ValueError("a dtype that is none")
    code = _text(call.arguments[0])
    if code not in _PLAIN_DTYPES:
        raise CheckpointError(
            f"refused: the pickle holds an array of dtype {code!r}; only plain numbers are read"
        )
    order = "=" if call.state is None else _text(call.state[1])
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"byte order {order!r}")
    return np.dtype(code).newbyteorder({"|": "="}.get(order, order))  # type: ignore[arg-type]


def _data(value: Any) -> bytes | memoryview:
    """Return raw bytes; Python 3 writes them as text in the protocols that Python 2 can read."""
    if isinstance(value, Call) and isinstance(value.function, Global):
        name, arguments = value.function.name, value.arguments
        if name == "encode" and isinstance(arguments[0], str) and arguments[1:] == ("latin1",):
            return arguments[0].encode("latin1")
        if name in ("bytes", "bytearray"):
            return _data(arguments[0]) if arguments else b""
    if isinstance(value, bytes | memoryview):
        return value
    raise ValueError(f"data that is a {type(value).__name__}")


def _text(value: Any) -> str:
    """Return a dict key or a name as text."""
    return str(value, "latin1") if isinstance(value, bytes) else str(value)
