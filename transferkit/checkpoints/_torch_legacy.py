"""torch's files from before version 1.6: a row of pickles and raw bytes, and the tar archive before that.

Both are read as data, and tensors are built only from bytes that the file holds.

References:
    ``torch.serialization._legacy_load``.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._inert import Call, Persistent, Pickle, children_of
from transferkit.checkpoints._pickles import ByteReader, read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._values import TorchReader, flat_tensor, storage_dtype, storage_of
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL = 1001
_TAR_MEMBERS = ("storages", "tensors", "pickle")
_TAR_BLOCK = 512
_MOST_MEMBERS = 16
_MOST_TENSORS = 200_000


@register_reader("torch legacy", matches=lambda path, head: head[2 : 2 + len(_MAGIC)] == _MAGIC)
def read_torch_legacy(path: Path, options: ReadOptions) -> Contents:
    """Read the row of pickles that ``torch.save`` wrote before 1.6."""
    if options.trusted:
        return contents_of(torch.load(str(path), map_location="cpu", weights_only=False), key=options.key)
    row = _Row(_mapped(path))
    # Magic number, protocol, facts about the machine that wrote it, the object, the keys of its storages.
    _, protocol, machine, saved, keys = (row.pickle() for _ in range(5))
    if protocol.value != _PROTOCOL or not isinstance(keys.value, list):
        raise CheckpointError(f"damaged: protocol {protocol.value!r} instead of {_PROTOCOL}")
    if isinstance(machine.value, dict) and machine.value.get("little_endian") is False:
        raise CheckpointError(
            "written with the other byte order; read it on such a machine and save safetensors"
        )
    reader = TorchReader(saved.end - saved.start, _absent)
    reader.refuse_unknown(saved)
    dtypes = _storages_in(saved.value)
    for key in map(_text, keys.value):
        if key in dtypes:
            reader.storages[key] = row.storage(dtypes[key])
    return contents_of(reader.read(saved), key=options.key)


@register_reader("torch tar", matches=lambda path, head: head[257:262] == b"ustar" and bool(_members(path)))
def read_torch_tar(path: Path, options: ReadOptions) -> Contents:
    """Read the tar archive that ``torch.save`` wrote in its first year."""
    if options.trusted:
        return contents_of(torch.load(str(path), map_location="cpu", weights_only=False), key=options.key)
    buffer = _mapped(path)
    parts = {name: buffer[start:end] for name, (start, end) in _members(path).items()}
    reader = TorchReader(len(parts["pickle"]), _absent)
    _tar_storages(parts["storages"], reader)
    _tar_tensors(parts["tensors"], reader)
    return contents_of(reader.read(read_pickle(parts["pickle"])), key=options.key)


def _absent(key: str, dtype: torch.dtype, count: int) -> Tensor:
    raise CheckpointError(f"damaged: storage {key!r} is not in the file")


def _storages_in(saved: Any) -> dict[str, torch.dtype]:
    """Return the dtype of every storage that a pickle refers to, by key."""
    found, seen, pending = {}, set[int](), [saved]
    while pending:
        value = pending.pop()
        if id(value) in seen or not isinstance(value, dict | list | tuple | Call | Persistent):
            continue
        seen.add(id(value))
        pending += children_of(value)
        if isinstance(value, Persistent):
            key, _, dtype, _ = storage_of(value)
            found[key] = dtype
    return found


def _tar_storages(buffer: memoryview, reader: TorchReader) -> None:
    row = _Row(buffer)
    for _ in range(_count(row.pickle().value, buffer)):
        key, _, kind = row.pickle().value
        reader.storages[_text(key)] = row.storage(storage_dtype(kind))
    for target, root, offset, count in row.pickle().value:
        flat = reader.storages[_text(root)]
        reader.storages[_text(target)] = reader.view_of(flat, offset, (count,), (1,))


def _tar_tensors(buffer: memoryview, reader: TorchReader) -> None:
    row = _Row(buffer)
    for _ in range(_count(row.pickle().value, buffer)):
        key, storage, _ = row.pickle().value
        dimensions, _ = row.numbers("<ii")  # the second is padding
        if not 0 <= dimensions <= 64:
            raise CheckpointError(f"damaged: a tensor of {dimensions} dimensions")
        shape, stride = row.numbers(f"<{dimensions}q"), row.numbers(f"<{dimensions}q")
        offset = row.number("<q")
        reader.tensors[_text(key)] = reader.view_of(reader.storages[_text(storage)], offset, shape, stride)


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Return the (start, end) of each part of a tar archive; nothing if it is not torch's."""
    size, place = path.stat().st_size, 0
    found: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        for _ in range(_MOST_MEMBERS):
            file.seek(place)
            header = file.read(_TAR_BLOCK)
            length = header[124:136].strip(b" \0")
            if header[257:262] != b"ustar" or not re.fullmatch(rb"[0-7]*", length):
                break
            name, begin = str(header[:100].rstrip(b"\0"), "latin1"), place + _TAR_BLOCK
            end = begin + int(length or b"0", 8)
            if end > size or name in found:
                return {}
            found[name] = begin, end
            place = begin - (begin - end) // _TAR_BLOCK * _TAR_BLOCK
    return {name: found[name] for name in _TAR_MEMBERS} if set(_TAR_MEMBERS) <= found.keys() else {}


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _Row(ByteReader):
    """A row of pickles and raw numbers, read one after another."""

    def read(self, count: int) -> memoryview:
        """Return the next ``count`` bytes as a view, or say that the file is damaged."""
        try:
            return super().read(count)
        except ValueError as error:
            raise CheckpointError(f"damaged: it ends too early ({error})") from error

    def pickle(self) -> Pickle:
        """Return the next pickle."""
        found = read_pickle(self.buffer, self.place)
        self.place = found.end
        return found

    def storage(self, dtype: torch.dtype) -> Tensor:
        """Return a storage as a flat tensor: a count of elements, then the elements."""
        return flat_tensor(self.read(self.number("<q") * dtype.itemsize), dtype)


def _count(value: Any, buffer: memoryview) -> int:
    if not isinstance(value, int) or not 0 <= value <= min(len(buffer), _MOST_TENSORS):
        raise CheckpointError(f"damaged: a count of {value!r}")
    return value


def _text(key: Any) -> str:
    return str(key, "ascii") if isinstance(key, bytes) else str(key)
