"""HDF5, Keras's container and many others': arrays mapped from the file, and nothing that leads out of it.

The library reads names, shapes and places alone. It would follow links into other files, load filters from folders
of plug-ins, allocate what a file merely declares and unpack what a chunk says; so the bytes are taken here.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import zlib
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.checkpoints._archives import LARGEST_SURPRISE
from transferkit.checkpoints._state_dicts import check_names, contents_of
from transferkit.checkpoints.registry import Contents
from transferkit.errors import CheckpointError, MissingExtraError, listed

MAGIC = b"\x89HDF\r\n\x1a\n"
_MOST_OBJECTS, _MOST_DEPTH = 200_000, 64
_TEXTS = ("model_config", "keras_version", "name", "dtype")  # attributes that may be of any length
_SHUFFLE, _DEFLATE, _CHECKSUM = 2, 1, 3
_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = range(4)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own: a member of an archive, say."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self.file, self.start, self.size, self.place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        room = max(0, min(len(buffer), self.size - self.place))
        self.file.seek(self.start + self.place)
        count = int(self.file.readinto(memoryview(buffer)[:room]))
        self.place += count
        return count


@dataclass
class Tree:
    """What an HDF5 file holds.

    Attributes:
        tensors: Arrays of numbers by path, ``"layers/dense/vars/0"``.
        texts: Attributes that are text, by path and name, with those that are lists of names.
        others: Paths of what is not read, each with what it is.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    texts: dict[tuple[str, str], Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def read_tree(path: Path, start: int = 0, size: int | None = None) -> Tree:
    """Read an HDF5 file, or the part of a file that is one; contiguous arrays are mapped from it.

    Args:
        path: The file.
        start: Where the HDF5 file begins in it.
        size: How many bytes it has; ``None`` for all.

    Raises:
        MissingExtraError: h5py is not installed.
        CheckpointError: The file leads to other files, declares more than it holds, or is damaged.
    """
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(f"{path}: reading HDF5 needs h5py: pip install transferkit[keras]") from None
    size = path.stat().st_size - start if size is None else size
    with path.open("rb") as file:
        try:
            with h5py.File(_Window(file, start, size), "r") as opened:
                return _Reader(h5py, path, start, size).read(opened)
        except (CheckpointError, MemoryError):
            raise
        except Exception as error:  # a damaged file breaks the library in ways that no one lists
            raise CheckpointError(f"damaged HDF5 file: {error}") from error


_READ_TEXTS = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
import h5py
text = lambda value: value if isinstance(value, str) else value.decode("utf-8", "replace")
with h5py.File(sys.argv[1], "r") as file:
    print(json.dumps([text(file[path or "/"].attrs[name]) for path, name in json.loads(sys.argv[2])]))
"""
_SECONDS = 20


def _texts_in_heap(path: Path, wanted: list[tuple[str, str]]) -> list[str]:
    """Read texts of any length in a process of their own: a damaged heap leads the library around without end."""
    if not wanted:
        return []
    known = json.dumps([folder for folder in sys.path if folder])  # not the one that the file may lie in
    command = [sys.executable, "-I", "-c", _READ_TEXTS, os.fspath(path), json.dumps(wanted), known]
    try:
        told = subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS).stdout
        return [str(text) for text in json.loads(told)]
    except (subprocess.SubprocessError, ValueError) as error:
        raise CheckpointError("damaged HDF5 file: its texts cannot be read") from error


class _Reader:
    """Walks one open file."""

    def __init__(self, h5py: Any, path: Path, start: int, size: int) -> None:
        self.h5py, self.start, self.size = h5py, start, size
        self.whole = torch.UntypedStorage.from_file(str(path), False, start + size)
        self.left = size + LARGEST_SURPRISE  # bytes that may be copied
        self.seen: dict[int, Tensor | None] = {}
        self.in_heap: list[tuple[str, str]] = []  # attributes
        self.path, self.tree = path, Tree()

    def read(self, opened: Any) -> Tree:
        """Return what the file holds."""
        self.seen[self._address(opened)] = None
        groups = [("", opened)]
        while groups:
            path, group = groups.pop()
            self._take_texts(path, group)
            found = [(f"{path}/{name}".lstrip("/"), self._child(group, name)) for name in group]
            for inner, child in found:
                if isinstance(child, self.h5py.Dataset):
                    self._take(inner, child)
            groups += [(p, child) for p, child in reversed(found) if isinstance(child, self.h5py.Group)]
            if len(self.seen) > _MOST_OBJECTS or path.count("/") > _MOST_DEPTH:
                raise CheckpointError(
                    "refused: an HDF5 file with more objects, or deeper groups, than any model has"
                )
        check_names(self.tree.tensors)
        self.tree.texts.update(zip(self.in_heap, _texts_in_heap(self.path, self.in_heap), strict=True))
        return self.tree

    def _child(self, group: Any, name: str) -> Any:
        """Return what a link leads to, if it is in this file; a group only once."""
        link = group.get(name, getlink=True)
        if isinstance(link, self.h5py.ExternalLink):
            raise CheckpointError(
                f"refused: {group.name}/{name} is a link to another file, {link.filename!r}; copy all into one "
                "file with h5py: for name in old: old.copy(name, new, expand_external=True)"
            )
        if not isinstance(link, self.h5py.HardLink):
            self.tree.others.append(
                f"{group.name}/{name} (a link to {getattr(link, 'path', '?')!r})".lstrip("/")
            )
            return None
        child = group[name]
        if isinstance(child, self.h5py.Group):
            address = self._address(child)
            if address in self.seen:
                raise CheckpointError(f"refused: {child.name} is a group that other names lead to")
            self.seen[address] = None
        return child

    def _address(self, node: Any) -> int:
        return int(self.h5py.h5o.get_info(node.id).addr)

    def _take_texts(self, path: str, node: Any) -> None:
        """Keep the attributes that are text, after checking that they are no larger than the file."""
        for name in node.attrs:
            found = node.attrs.get_id(name)
            kind = self.h5py.check_string_dtype(found.dtype)
            several = math.prod(found.shape or (0,) * (found.shape is None))
            if not kind or not several:
                continue
            if found.get_storage_size() > self.size:
                raise CheckpointError(f"refused: attribute {name!r} of {node.name} is larger than the file")
            if kind.length is None:  # such texts lie in a heap
                if several == 1 and name in _TEXTS and self.start == 0:
                    self.in_heap.append((path, name))
                continue
            value = node.attrs[name]
            one = not isinstance(value, np.ndarray)
            texts = [_text(each) for each in ([value] if one else value.reshape(-1))]
            self.tree.texts[path, name] = texts[0] if one else texts

    def _take(self, path: str, dataset: Any) -> None:
        """Keep a data set of numbers; note any other."""
        address = self._address(dataset)
        if address not in self.seen:
            self._take_texts(path, dataset)
            self.seen[address] = self._tensor(dataset)
        tensor = self.seen[address]
        if tensor is None:
            self.tree.others.append(f"{path} (not plain numbers)")
        else:
            self.tree.tensors[path] = tensor

    def _tensor(self, dataset: Any) -> Tensor | None:
        """Return a data set as a tensor, ``None`` where it has no plain numbers."""
        plan = dataset.id.get_create_plist()
        if plan.get_external_count() or plan.get_layout() == _VIRTUAL:
            raise CheckpointError(
                f"refused: {dataset.name} has its values in other files (external storage or a virtual data set); "
                "write them into one with h5py: new[name] = old[name][()]"
            )
        dtype = self._dtype(dataset)
        if dtype is None or dataset.shape is None:
            return None
        shape, count = tuple(dataset.shape), math.prod(dataset.shape)
        if not count:
            return torch.empty(shape, dtype=_torch_dtype(dtype))
        if plan.get_layout() == _CONTIGUOUS:
            return self._contiguous(dataset, dtype, shape, count)
        if plan.get_layout() == _COMPACT and count * dtype.itemsize <= min(self.size, 1 << 16):
            self._copy(dataset, count * dtype.itemsize)
            return _native(np.frombuffer(dataset[()].tobytes(), dtype), dtype).reshape(shape)
        return _native(self._from_chunks(dataset, plan, dtype), dtype)

    def _dtype(self, dataset: Any) -> np.dtype[Any] | None:
        """Return how the numbers of a data set lie in the file; bfloat16 as two bytes without a meaning."""
        kind, types = dataset.id.get_type(), self.h5py.h5t
        if isinstance(kind, types.TypeOpaqueID) and kind.get_size() == 2:
            return np.dtype("V2")
        if isinstance(kind, types.TypeFloatID) and kind.get_size() == 2 and kind.get_ebias() == 127:
            return np.dtype("V2") if kind.get_order() == types.ORDER_LE else None
        dtype = np.dtype(dataset.dtype)
        plain = dtype.kind in "biufc" and dtype.itemsize <= 16 and dtype != np.dtype(np.longdouble)
        return dtype if plain and kind.equal(self.h5py.h5t.py_create(dtype, logical=True)) else None

    def _contiguous(self, dataset: Any, dtype: np.dtype[Any], shape: tuple[int, ...], count: int) -> Tensor:
        size, place = count * dtype.itemsize, dataset.id.get_offset()
        if place is None or place < 0 or place + size > self.size:
            raise CheckpointError(
                f"refused: {dataset.name} declares {size:,} bytes, of which the file of {self.size:,} bytes has none"
            )
        part = self.whole[self.start + place : self.start + place + size]
        if (self.start + place) % dtype.itemsize or not dtype.isnative or dtype.kind == "b":
            self._copy(dataset, size)
            return _native(torch.empty(0, dtype=torch.uint8).set_(part).numpy().view(dtype), dtype).reshape(
                shape
            )
        return torch.empty(0, dtype=_torch_dtype(dtype)).set_(part).reshape(shape)

    def _copy(self, dataset: Any, size: int) -> None:
        """Refuse to copy more than the file can hold."""
        self.left -= size
        if self.left < 0:
            raise CheckpointError(
                f"refused: {dataset.name} and what stands before it declare far more than the file of "
                f"{self.size:,} bytes; where you trust it, write it anew without compression: h5repack -f NONE"
            )

    def _from_chunks(self, dataset: Any, plan: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array that lies in chunks, each of which must be there."""
        sides = tuple(dataset.chunks)
        steps = [range(0, length, side) for length, side in zip(dataset.shape, sides, strict=True)]
        stored: dict[tuple[int, ...], Any] = {}
        dataset.id.chunk_iter(lambda info: stored.setdefault(tuple(info.chunk_offset), info) and None)
        wanted = math.prod(map(len, steps))
        if len(stored) != wanted or sum(info.size for info in stored.values()) > self.size:
            raise CheckpointError(
                f"refused: {dataset.name} declares {wanted:,} chunks of values and stores {len(stored):,}"
            )
        self._copy(dataset, dataset.size * dtype.itemsize + math.prod(sides) * dtype.itemsize)
        filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
        array = np.empty(dataset.shape, dtype)
        for corner in product(*steps):
            info = stored[corner]
            raw = self._unpacked(dataset, info, filters, math.prod(sides) * dtype.itemsize, dtype.itemsize)
            room = tuple(slice(at, at + side) for at, side in zip(corner, sides, strict=True))
            inside = tuple(slice(0, length) for length in array[room].shape)
            array[room] = np.frombuffer(raw, dtype).reshape(sides)[inside]
        return array

    def _unpacked(self, dataset: Any, info: Any, filters: list[int], size: int, width: int) -> bytes:
        """Return the bytes of a chunk, never more than it should have."""
        raw = bytes(self._bytes(info.byte_offset, info.size))
        for number in reversed(range(len(filters))):
            if info.filter_mask >> number & 1:  # left out for this chunk
                continue
            if filters[number] == _DEFLATE:
                raw = zlib.decompressobj().decompress(raw, size + 4)  # it may be checked before it is packed
            elif filters[number] == _SHUFFLE:
                raw = np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()
            elif filters[number] == _CHECKSUM:
                raw = raw[:-4]
            else:
                raise CheckpointError(
                    f"{dataset.name} is packed by filter {filters[number]}, which is not read here; unpack it: "
                    "h5repack -f NONE in.h5 out.h5"
                )
        if len(raw) != size:
            raise CheckpointError(f"damaged: a chunk of {dataset.name} has {len(raw):,} of {size:,} bytes")
        return raw

    def _bytes(self, place: int, size: int) -> NDArray[np.uint8]:
        if place < 0 or place + size > self.size:
            raise CheckpointError("damaged: a chunk lies outside the HDF5 file")
        part = self.whole[self.start + place : self.start + place + size]
        return torch.empty(0, dtype=torch.uint8).set_(part).numpy()


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    if dtype.kind == "V":
        return torch.bfloat16
    return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype


def _native(array: NDArray[Any], dtype: np.dtype[Any]) -> Tensor:
    """Return an array as a tensor, in this machine's byte order."""
    if dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if dtype.kind == "b":
        return torch.from_numpy(array.view(np.uint8) != 0)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=True))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def tree_contents(tree: Tree, key: str | None = None) -> Contents:
    """Return an HDF5 file that is not Keras's: every array under its path, dotted."""
    named = {
        re.sub(r":\d+$", "", path.replace(".", "_").replace("/", ".")): tensor
        for path, tensor in tree.tensors.items()
    }
    if len(named) != len(tree.tensors):
        raise CheckpointError("refused: two arrays have the same name")
    found = contents_of(named, key=key)
    return replace(found, notes=(*found.notes, *not_read(tree)), layout="hdf5", ordered=False)


def not_read(tree: Tree) -> list[str]:
    """Return a note on what a file holds beside arrays."""
    return (
        [f"left out what is no array of numbers in this file: {listed(tree.others, 4)}"] if tree.others else []
    )
