"""Zip archives, checked before use; and numpy's .npz, whose stored arrays are mapped and compressed ones unpacked."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from transferkit.checkpoints._flax import flax_contents, is_flax
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed
from transferkit.memory import DeferredTensor

_ENCRYPTED = 0x1
_LOCAL_MARK = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes of a member's local header before its name
LARGEST_SURPRISE = 300_000_000  # bytes that a compressed file may hold beyond its own; weights hardly compress
_LARGEST_DIRECTORY = 1 << 24  # bytes; its entries take twenty times as much in memory
_DIRECTORY_SIZE = 5  # place in what zipfile finds at the end of an archive
_CHUNK = 1 << 20
PLAIN_KINDS = "biufc"


def zip_names(path: Path) -> list[str]:
    """Return the names in an archive, none if it cannot be read as one."""
    try:
        with _opened(path) as archive:
            return archive.namelist()
    except CheckpointError:
        return []


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        with path.open("rb") as file:
            check_directory(file)
        return zipfile.ZipFile(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory breaks zipfile in many ways
        raise CheckpointError(f"damaged zip archive: {error}") from error


def check_directory(file: Any) -> None:
    """Refuse an archive whose directory is larger than any."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if end and end[_DIRECTORY_SIZE] > _LARGEST_DIRECTORY:
        raise CheckpointError(f"refused: the directory of the archive has {end[_DIRECTORY_SIZE]:,} bytes")


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive after checking that its members are distinct, in the clear, and no larger than the file.

    Raises:
        CheckpointError: They are not, or the archive is damaged.
    """
    archive = _opened(path)
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        raise CheckpointError("refused: two members of the archive have the same name")
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise CheckpointError("refused: the archive is encrypted")
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise CheckpointError("refused: the members of the archive overlap or are larger than the file")
    return archive


def _matches(path: Path, head: bytes) -> bool:
    names = zip_names(path) if head.startswith(b"PK") else []
    return bool(names) and all(name.endswith(".npy") for name in names)


@register_reader("npz", matches=_matches, suffixes=(".npz",))
def read_npz(path: Path, options: ReadOptions) -> Contents:
    """Read an archive of arrays; what numpy pickled into it is inert."""
    tensors: dict[str, Any] = {}
    others: list[str] = []
    told: list[str] = []
    with open_zip(path) as archive:
        members = archive.infolist()
        _check_sizes(members)
        whole = np.memmap(path, np.uint8, "c")
        for member in members:
            name = member.filename.removesuffix(".npy")
            array = _array(path, archive, member, whole, told)
            if name in tensors or name in others:
                raise CheckpointError(f"refused: two arrays are called {name!r}")
            if array is None:
                others.append(name)
            else:
                tensors[name] = array
    if is_flax(tensors):
        found = flax_contents({tuple(name.split("/")): tensor for name, tensor in tensors.items()}, options.key)
        found = replace(found, notes=(*found.notes, *told))
    else:
        found = contents_of(dotted(tensors), key=options.key, notes=told)
    notes = [*found.notes, f"left out what is not a number: {listed(others)}"] if others else found.notes
    return replace(found, notes=tuple(notes))


def dotted(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors under dotted names where the file separates by slashes, as JAX and TensorFlow do.

    Example:
        >>> list(dotted({"encoder/conv/kernel": torch.zeros(1)}))
        ['encoder.conv.kernel']
    """
    if any("." in name for name in tensors) or not any("/" in name for name in tensors):
        return dict(tensors)
    return {name.replace("/", "."): tensor for name, tensor in tensors.items()}


def _check_sizes(members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that would unpack to far more than it is."""
    unpacked, packed = (
        sum(member.file_size for member in members),
        sum(member.compress_size for member in members),
    )
    if unpacked > 2 * (packed + LARGEST_SURPRISE):
        raise CheckpointError(
            f"refused: {packed:,} bytes that would unpack to {unpacked:,}; where you trust it, write it anew without "
            "compression: numpy.savez(new_path, **numpy.load(path))"
        )


def _array(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: NDArray[np.uint8], told: list[str]
) -> Any:
    """Return one member as a tensor, or its objects and a note of them; ``None`` if it holds text."""
    with archive.open(member) as file:
        shape, fortran, dtype = npy_header(file, member.filename)
        if dtype.kind in "SU":
            return None
        if dtype.kind == "O":
            from transferkit.checkpoints._pickle_files import unpickled  # which reads archives itself

            found, notes = unpickled(memoryview(file.read()))
            told += notes
            return found
        # numpy does not know bfloat16: JAX's lie there as two bytes without a meaning.
        bfloat16 = dtype == np.dtype("V2")
        dtype = np.dtype(np.int16) if bfloat16 else dtype
        if dtype.kind not in PLAIN_KINDS or dtype.itemsize > 16:
            raise CheckpointError(
                f"refused: {member.filename} is an array of {dtype}; only plain numbers are read"
            )
        start, size = file.tell(), math.prod(shape) * dtype.itemsize
        if any(side < 0 for side in shape) or size > member.file_size - start:
            raise CheckpointError(
                f"damaged: {member.filename} declares a shape of {shape} and has {member.file_size:,} bytes"
            )
        order: Literal["C", "F"] = "F" if fortran else "C"
        if member.compress_type == zipfile.ZIP_STORED and dtype.isnative and size:
            place = place_of(path, member, len(whole)) + start
            if place % dtype.itemsize == 0:
                flat = whole[place : place + size].view(dtype)
                return _as_tensor(flat.reshape(shape, order=order), bfloat16)
        kind = torch.bfloat16 if bfloat16 else torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
        how = partial(_unpacked, path, member, start, shape, dtype, order, bfloat16)
        return DeferredTensor(shape, kind, how)


def _unpacked(
    path: Path,
    member: zipfile.ZipInfo,
    start: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    order: Literal["C", "F"],
    bfloat16: bool,
) -> Tensor:
    """Return an array that cannot be mapped: compressed, of the other byte order, or out of step with its numbers."""
    try:
        with open_zip(path) as archive, archive.open(member) as file:
            file.read(start)
            flat = _read(file, math.prod(shape) * dtype.itemsize).view(dtype)
    except Exception as error:
        raise CheckpointError(f"{path}: damaged: {member.filename}: {error}") from error
    native = np.ascontiguousarray(flat.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order=order))
    return _as_tensor(native.reshape(shape), bfloat16)


def _as_tensor(array: NDArray[Any], bfloat16: bool) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def _read(file: IO[bytes], size: int) -> NDArray[np.uint8]:
    """Return so many bytes, which are in memory once."""
    raw = np.empty(size, np.uint8)
    for begin in range(0, size, _CHUNK):
        chunk = file.read(min(_CHUNK, size - begin))
        raw[begin : begin + len(chunk)] = np.frombuffer(chunk, np.uint8)
    return raw


def npy_header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, the order and the dtype in the header of an array."""
    try:
        version = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except Exception as error:
        raise CheckpointError(f"damaged: {name}: {error}") from error


def place_of(path: Path, member: zipfile.ZipInfo, size: int) -> int:
    """Return the offset of a stored member's bytes, by its local header, which may differ from the directory's.

    Raises:
        CheckpointError: They do not lie in the ``size`` bytes of the file.
    """
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
    if len(local) == _LOCAL_HEADER:
        name, extra = struct.unpack_from("<HH", local, 26)
        place = int(member.header_offset + _LOCAL_HEADER + name + extra)
        if local[:4] == _LOCAL_MARK and place + member.compress_size <= size:
            return place
    raise CheckpointError(f"damaged: {member.filename!r} is not where the archive's directory says")
