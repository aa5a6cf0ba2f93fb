"""TensorFlow's checkpoints: a sorted table (.index, LevelDB's format) of where variables lie in files of raw bytes.

A SavedModel keeps its variables so too. Kinds of layers are not told: the tensors keep TensorFlow's axes and names,
and the plan of a transfer turns them by the kind of the target's module.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._protobuf import Message, varint
from transferkit.checkpoints._raw import Neighbors
from transferkit.checkpoints._state_dicts import LARGEST_NAMES, LONGEST_NAME, check_names
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, did_you_mean, harmless, listed
from transferkit.layers import natural_order

_MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_FOOTER = 48
_LARGEST_INDEX = 1 << 25  # bytes; the largest models have some hundred thousand
_DATA = re.compile(r"\.data-\d{5}-of-\d{5}$")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
# What an optimizer keeps, by its path; it may be the one to keep the model's variables, under their own names.
_STATES = re.compile(
    r"(^|/)(\.OPTIMIZER_SLOT/|optimizer\w*/(?!_trainable_variables/)|_variables/\d+/|beta[12]_power(_\d+)?$)"
)
# tensorflow.DataType, from 1 on, in torch's words; "-" is what torch has no plain tensors of.
_NAMES = (
    "float32 float64 int32 uint8 int16 int8 - complex64 int64 bool - - - bfloat16 - - uint16 complex128 float16 - - "
    "uint32 uint64"
)
_DTYPES = {code: getattr(torch, name) for code, name in enumerate(_NAMES.split(), 1) if name != "-"}


def _matches(path: Path, head: bytes) -> bool:
    if path.is_dir():
        return (path / "saved_model.pb").is_file() or (path / "variables.index").is_file()
    return path.name == "saved_model.pb" or bool(_DATA.search(path.name)) or _is_table(path)


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_MAGIC)))
        return file.read() == _MAGIC


def _index_of(path: Path) -> Path:
    """Return the index that tells of a file of data, or is in a folder."""
    if path.is_file() and path.name != "saved_model.pb":
        return path.with_name(_DATA.sub(".index", path.name))
    folder = path if path.is_dir() else path.parent
    if not (folder / "variables.index").is_file():
        folder = folder / "variables"
    return folder / "variables.index"


@register_reader("tensorflow", matches=_matches, suffixes=(".index",))
def read_bundle(path: Path, options: ReadOptions) -> Contents:
    """Read a checkpoint of TensorFlow by its index, its data or the folder of a SavedModel; states stay unread."""
    index = _index_of(path)
    if not index.is_file():
        raise CheckpointError(f"TensorFlow's index {index.name} is not beside it; put it there")
    if index.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(f"refused: {index.name} is larger than any index")
    bundle = _Bundle(index)
    names = bundle.names()
    variables = {key: name for key, name in names.items() if not _STATES.search(key)}
    slots = _slots(variables.values())
    if options.key is not None and options.key not in slots.values():
        raise CheckpointError(
            f"no such values beside the variables as {options.key!r}{did_you_mean(options.key, slots.values())}"
        )
    wanted = {name: key for key, name in variables.items() if slots.get(name) == options.key}
    found = {name: bundle.tensor(wanted[name]) for name in sorted(wanted, key=natural_order)}
    counts = {name for name, each in found.items() if each.ndim == 0 and not each.is_floating_point()}
    ending = "" if options.key is None else f"/{options.key}"
    tensors = {name.removesuffix(ending).replace("/", "."): found[name] for name in found if name not in counts}
    if len(tensors) + len(counts) < len(found):
        raise CheckpointError("refused: two variables have names that differ by slashes and dots alone")
    if not tensors:
        raise CheckpointError("it holds no variables")
    check_names(tensors)
    return Contents(
        tensors,
        notes=tuple(_notes(len(names) - len(variables), slots, options.key, bundle.unread)),
        metadata={name: found[name].item() for name in counts},  # of steps or saves
        files=(index, *bundle.neighbors.opened),
        ordered=False,
        layout="tensorflow",
    )


def _slots(names: Iterable[str]) -> dict[str, str]:
    """Return the values that by their names belong to a variable, with the last part: w/Adam where there is w."""
    every = set(names)
    return {name: name.rpartition("/")[2] for name in sorted(every) if name.rpartition("/")[0] in every}


def _notes(states: int, slots: Mapping[str, str], key: str | None, unread: list[str]) -> Iterator[str]:
    if states:
        yield f"left out {states} values of an optimizer"
    others = Counter(slot for slot in slots.values() if slot != key)
    if others:
        counts = ", ".join(f"key={harmless(slot)!r} ({count})" for slot, count in others.items())
        yield f"left out what belongs to variables, as an optimizer keeps it; to read it instead: {counts}"
    if unread:
        yield f"left out what is not a number: {listed(unread)}"


class _Bundle:
    """What an index tells: where each variable lies, by its key."""

    def __init__(self, index: Path) -> None:
        self.prefix = index.name.removesuffix(".index")
        self.neighbors = Neighbors(index.parent)
        raw = memoryview(index.read_bytes())
        entries = {key: Message(value) for key, value in _table(raw)}
        header = entries.pop(b"", None)
        if header is None or header.number(2):
            raise CheckpointError("damaged, or of another byte order: an index without the usual header")
        self.shards = header.number(1)
        self.entries = {
            str(key, "utf-8", "backslashreplace"): entry for key, entry in entries.items() if key[0]
        }
        self.slices = {key: entry for key, entry in entries.items() if not key[0]}
        self.unread = [
            key for key, entry in self.entries.items() if entry.number(1) not in _DTYPES and key != _OBJECTS
        ]

    def names(self) -> dict[str, str]:
        """Return each variable's name by its key: TensorFlow's own, where it is told and tells one from another."""
        own = self._full_names()
        names = {}
        values: dict[str, set[tuple[Any, ...]]] = {}
        for key, entry in self.entries.items():
            if entry.number(1) in _DTYPES:
                path = key.removesuffix(_VALUE)
                names[key] = own[key] if "/" in own.get(key, "") else path
                checksum = tuple(bytes(view) for view in entry.views(6))
                values.setdefault(names[key], set()).add((*_shape(entry), *checksum))
        twice = {name for name, found in values.items() if len(found) > 1}
        return {key: key.removesuffix(_VALUE) if name in twice else name for key, name in names.items()}

    def _full_names(self) -> dict[str, str]:
        """Return the variables' names by key, from the graph of objects, which is a text of one element."""
        entry = self.entries.get(_OBJECTS)
        if entry is None:
            return {}
        raw = self._data(entry, torch.uint8, [entry.number(5)], _OBJECTS).numpy().data
        size, start = varint(raw, 0)
        graph = Message(raw[start + 4 : start + 4 + size])
        told = [each for node in graph.messages(1) for each in node.messages(2)]
        return {each.text(3): each.text(2) for each in told}

    def tensor(self, key: str) -> Tensor:
        """Return a variable, put together where it was saved in parts."""
        entry = self.entries[key]
        dtype, shape = _DTYPES[entry.number(1)], _shape(entry)
        if 7 not in entry:
            return self._data(entry, dtype, shape, key)
        start = b"\0" + key.encode() + b"\0\x01"
        parts = [part for found, part in sorted(self.slices.items()) if found.startswith(start)]
        extents = sorted(_extents(part, shape) for part in entry.messages(7))
        sizes = [[stop - begin for begin, stop in extent] for extent in extents]
        total = sum(math.prod(size) for size in sizes)
        if [_shape(part) for part in parts] != sizes or total != math.prod(shape):
            raise CheckpointError(f"damaged: the parts of {harmless(key)} do not make a whole")
        pieces = [self._data(part, dtype, _shape(part), key) for part in parts]  # there are so many bytes
        whole = torch.zeros(shape, dtype=dtype)
        for piece, extent in zip(pieces, extents, strict=True):
            whole[tuple(slice(begin, stop) for begin, stop in extent)] = piece
        return whole

    def _data(self, entry: Message, dtype: torch.dtype, shape: list[int], what: str) -> Tensor:
        name = f"{self.prefix}.data-{entry.number(3):05}-of-{self.shards:05}"
        return self.neighbors.tensor(name, entry.number(4), entry.number(5), dtype, shape, what)


def _shape(entry: Message) -> list[int]:
    return [side.number(1) for side in entry.message(2).messages(2)]


def _extents(part: Message, shape: list[int]) -> list[tuple[int, int]]:
    """Return where a part begins and ends on each axis; without a length it is the whole of it."""
    found = []
    for extent, side in zip(part.messages(1), shape, strict=False):
        begin = extent.number(1)
        found.append((begin, begin + extent.number(2) if 2 in extent else side))
    return found


# LevelDB's table: blocks of keys in order, each key with what it does not share with the one before.


def _table(raw: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield keys and values; keys come in order, each once.

    Raises:
        CheckpointError: The table is damaged.
    """
    if len(raw) < _FOOTER or bytes(raw[-8:]) != _MAGIC:
        raise CheckpointError("damaged: an index without its end")
    place = len(raw) - _FOOTER
    for _ in range(2):  # the block of other things, of which there are none
        _, place = varint(raw, place)
    last, left = None, LARGEST_NAMES
    for _, handle in _block(raw, raw, place):
        for key, value in _block(raw, handle, 0):
            if last is not None and key <= last:
                raise CheckpointError("damaged: an index whose keys are not in order")
            last, left = key, left - len(key)
            if left < 0:
                raise CheckpointError("refused: the keys of the index are larger than any model's")
            yield key, value


def _block(raw: memoryview, handle: memoryview, place: int) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the keys and values of the block that a handle tells."""
    begin, place = varint(handle, place)
    size, _ = varint(handle, place)
    block = raw[begin : begin + size + 5]
    if len(block) != size + 5:
        raise CheckpointError("damaged: a block of the index is not in the file")
    if block[size] != 0:
        raise CheckpointError(
            "a compressed index, which TensorFlow does not write; save the checkpoint anew with it"
        )
    if int.from_bytes(block[size + 1 :], "little") != _masked(_crc32c(block[: size + 1])):
        raise CheckpointError("damaged: a block of the index does not match its checksum")
    restarts = int.from_bytes(block[max(0, size - 4) : size], "little")
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = varint(block, place)
        own, place = varint(block, place)
        length, place = varint(block, place)
        if shared > len(key) or place + own + length > end or shared + own > LONGEST_NAME:
            raise CheckpointError("damaged: an entry of the index")
        key = key[:shared] + bytes(block[place : place + own])
        yield key, block[place + own : place + own + length]
        place += own + length


def _crc_table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_CRC_TABLE = _crc_table()


def _crc32c(raw: memoryview) -> int:
    crc = 0xFFFFFFFF
    for byte in raw:
        crc = _CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    """Return a checksum as LevelDB stores it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
