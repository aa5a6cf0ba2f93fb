"""torch's files from before version 1.6: a row of pickles and raw bytes, and the tar archive before that.

``weights_only`` does not read the tar archive, and for the other it reserves whatever a hostile file asks for.
Both are therefore read as data here, and their tensors built from the bytes that are there.

References:
    ``torch.serialization._legacy_load``.
"""

from __future__ import annotations

import mmap
import tarfile
from pathlib import Path
from typing import Any

import torch

from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.nested import contents_of
from transferkit.checkpoints.pickles import Pickle, read_pickle
from transferkit.checkpoints.registry import register_reader
from transferkit.checkpoints.torch_objects import Builder, flat_tensor, numbers, view_of
from transferkit.checkpoints.torch_pickle import refusal_of, storage_dtype, storages_in
from transferkit.errors import CheckpointError

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL = 1001
_TAR_MEMBERS = ("storages", "tensors", "pickle")


@register_reader("torch legacy", matches=lambda path, head: head[2 : 2 + len(_MAGIC)] == _MAGIC)
def read_torch_legacy(path: Path, options: ReadOptions) -> Contents:
    """Read the row of pickles that ``torch.save`` wrote before 1.6."""
    if options.trusted:
        return contents_of(torch.load(str(path), map_location="cpu", weights_only=False), key=options.key)
    buffer = _mapped(path)
    row: list[Pickle] = []
    for _ in range(5):  # magic number, protocol, facts about the machine, the object, the keys of its storages
        row.append(read_pickle(buffer, row[-1].end if row else 0))
    protocol, machine, keys = row[1].value, row[2].value, row[4].value
    if protocol != _PROTOCOL or not isinstance(keys, list):
        raise CheckpointError(f"damaged: protocol {protocol!r} instead of {_PROTOCOL}")
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise CheckpointError(
            "written with the other byte order; read it on such a machine and save safetensors"
        )
    builder = _builder(row[3])
    cursor = _Cursor(buffer, row[4].end)
    dtypes = storages_in(row[3].value)
    for key in keys:
        dtype = dtypes.get(_text(key))
        if dtype is not None:
            builder.storages[_text(key)] = cursor.storage(dtype)
    return contents_of(builder.build(row[3].value), key=options.key)


@register_reader("torch tar", matches=lambda path, head: head[257:262] == b"ustar" and bool(_members(path)))
def read_torch_tar(path: Path, options: ReadOptions) -> Contents:
    """Read the tar archive that ``torch.save`` wrote in its first year."""
    if options.trusted:
        return contents_of(torch.load(str(path), map_location="cpu", weights_only=False), key=options.key)
    buffer = _mapped(path)
    parts = {name: buffer[start:end] for name, (start, end) in _members(path).items()}
    saved = read_pickle(parts["pickle"])
    builder = _builder(saved)
    _tar_storages(parts["storages"], builder)
    _tar_tensors(parts["tensors"], builder)
    return contents_of(builder.build(saved.value), key=options.key)


class _Cursor:
    """A place in a buffer of pickles and raw numbers."""

    def __init__(self, buffer: memoryview, place: int = 0) -> None:
        self.buffer = buffer
        self.place = place

    def pickle(self) -> Any:
        found = read_pickle(self.buffer, self.place)
        self.place = found.end
        return found.value

    def numbers(self, format: str) -> tuple[int, ...]:
        values, self.place = numbers(format, self.buffer, self.place)
        return values

    def storage(self, dtype: torch.dtype) -> torch.Tensor:
        """Return a storage as a flat tensor: a count of elements, then the elements."""
        (count,) = self.numbers("<q")
        end = self.place + count * dtype.itemsize
        if count < 0 or end > len(self.buffer):
            raise CheckpointError(f"damaged: a storage of {count:,} elements is not all there")
        raw, self.place = self.buffer[self.place : end], end
        return flat_tensor(raw, dtype)


def _tar_storages(buffer: memoryview, builder: Builder) -> None:
    cursor = _Cursor(buffer)
    for _ in range(_count(cursor.pickle(), buffer)):
        key, _, kind = cursor.pickle()
        builder.storages[_text(key)] = cursor.storage(storage_dtype(kind))
    for target, root, offset, count in cursor.pickle():
        flat = builder.storages[_text(root)]
        builder.storages[_text(target)] = view_of(flat, offset, (count,), (1,))


def _tar_tensors(buffer: memoryview, builder: Builder) -> None:
    cursor = _Cursor(buffer)
    for _ in range(_count(cursor.pickle(), buffer)):
        key, storage, _ = cursor.pickle()
        dimensions, _ = cursor.numbers("<ii")  # the second is padding
        if not 0 <= dimensions <= 64:
            raise CheckpointError(f"damaged: a tensor of {dimensions} dimensions")
        shape, stride = cursor.numbers(f"<{dimensions}q"), cursor.numbers(f"<{dimensions}q")
        (offset,) = cursor.numbers("<q")
        builder.tensors[_text(key)] = view_of(builder.storages[_text(storage)], offset, shape, stride)


def _builder(found: Pickle) -> Builder:
    """Return a builder for the pickle's value, or refuse what it would import."""
    builder = Builder()
    blocked = sorted(str(name) for name in found.globals if not builder.knows(name))
    if blocked:
        raise CheckpointError(refusal_of(blocked))
    return builder


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Return where each part lies in a tar archive, nothing if it is not torch's."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            found = {
                member.name: (member.offset_data, member.offset_data + member.size)
                for member in archive
                if member.isreg() and not member.issparse() and 0 <= member.size <= size - member.offset_data
            }
    except Exception:  # a damaged header breaks tarfile in many ways
        return {}
    return {name: found[name] for name in _TAR_MEMBERS} if set(_TAR_MEMBERS) <= found.keys() else {}


def _count(value: Any, buffer: memoryview) -> int:
    if not isinstance(value, int) or not 0 <= value <= len(buffer):
        raise CheckpointError(f"damaged: a count of {value!r}")
    return value


def _text(key: Any) -> str:
    return str(key, "ascii") if isinstance(key, bytes) else str(key)
