"""Write protocol buffers by hand: ONNX models, Caffe nets and TensorFlow's indexes, honest and not."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transferkit.checkpoints._bundles import _crc32c, _masked

_CODES = {"f4": 1, "u1": 2, "i1": 3, "i4": 6, "i8": 7, "b1": 9, "f2": 10, "f8": 11}


def varint(number: int) -> bytes:
    number %= 1 << 64
    made = b""
    while number > 127:
        made += bytes([number & 127 | 128])
        number >>= 7
    return made + bytes([number])


def message(fields: Mapping[int, Any]) -> bytes:
    """Return a message; a list is a field's several values, an array is packed numbers."""
    each = [
        (number, value)
        for number, found in fields.items()
        for value in (found if isinstance(found, list) else [found])
    ]
    return b"".join(_field(number, value) for number, value in each)


def _field(number: int, value: Any) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, np.ndarray):
        value = value.tobytes() if value.dtype.kind == "f" else b"".join(map(varint, value.tolist()))
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def tensor(name: str, array: Any, **fields: Any) -> bytes:
    """Return an ONNX tensor with raw bytes; fields by their numbers as f13=... add or replace."""
    array = np.asarray(array)
    own = {1: ints(*array.shape), 2: _CODES[array.dtype.str[1:]], 8: name, 9: array.tobytes()}
    return message({key: each for key, each in (own | _numbered(fields)).items() if each is not None})


def _numbered(fields: Mapping[str, Any]) -> dict[int, Any]:
    return {int(key[1:]): value for key, value in fields.items()}


def node(op: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> bytes:
    told = [message({1: key} | _attribute(value)) for key, value in attributes.items()]
    return message({1: list(inputs), 2: output, 3: name or output, 4: op, 5: told})


def _attribute(value: Any) -> dict[int, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, tuple):
        return {8: ints(*value), 20: 7} if isinstance(value[0], int) else {9: list(value), 20: 8}
    return {float: {2: value, 20: 1}, int: {3: value, 20: 2}, str: {4: value, 20: 3}}[type(value)]


def graph(nodes: Sequence[bytes], initializers: Sequence[bytes], **fields: Any) -> bytes:
    return message({1: list(nodes), 2: "g", 5: list(initializers)} | _numbered(fields))


def model(nodes: Sequence[bytes], initializers: Sequence[bytes], producer: str = "", **fields: Any) -> bytes:
    own = {1: 8, 2: producer, 7: graph(nodes, initializers, **fields), 8: message({1: "", 2: 17})}
    return message(own)


def blob(array: Any) -> bytes:
    array = np.asarray(array, "f4")
    return message({7: message({1: ints(*array.shape)}), 5: array.reshape(-1)})


def table(entries: Mapping[bytes, bytes], compression: int = 0, shared: int | None = None) -> bytes:
    """Return a table of LevelDB with one block."""
    block, last = b"", b""
    for key, value in entries.items():
        same = 0
        while same < min(len(key), len(last)) and key[same] == last[same]:
            same += 1
        same = same if shared is None else shared
        block += varint(same) + varint(len(key) - same) + varint(len(value)) + key[same:] + value
        last = key
    return table_of(block, compression=compression)


def table_of(block: bytes, last: bytes = b"~", compression: int = 0) -> bytes:
    """Return a table of one block of entries, with checksums that match."""
    made, handles = b"", []
    for content in (block, b"", None):
        if content is None:
            content = varint(0) + varint(len(last)) + varint(len(handles[0])) + last + handles[0]
        content += struct.pack("<II", 0, 1)
        handles.append(varint(len(made)) + varint(len(content)))
        content += bytes([compression])
        made += content + struct.pack("<I", _masked(_crc32c(memoryview(content))))
    return made + (handles[1] + handles[2]).ljust(40, b"\0") + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"


def bundle(arrays: Mapping[str, Any], **changes: Any) -> tuple[bytes, bytes]:
    """Return the index and the data of a TensorFlow checkpoint."""
    codes = {"f4": 1, "f8": 2, "i4": 3, "i8": 9, "f2": 19}
    data, entries = b"", {b"": message({1: 1, 3: message({1: 1})})}
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        sides = message({2: [message({1: side}) for side in array.shape]})
        own = {1: codes[array.dtype.str[1:]], 2: sides, 4: len(data), 5: array.nbytes, 6: float(len(data))}
        entries[name.encode()] = message(own | _numbered(changes))
        data += array.tobytes()
    return table(entries), data
