"""Zip archives, checked before use; and numpy's .npz, whose stored arrays are mapped and compressed ones unpacked."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError

_ENCRYPTED = 0x1
_LOCAL_HEADER = 30  # bytes of a member's local header before its name
_LARGEST_SURPRISE = 1 << 25  # bytes that compressed arrays may hold however small they are
_LARGEST_RATIO = 20  # weights hardly compress
_PLAIN_KINDS = "biufc"


def zip_names(path: Path) -> list[str]:
    """Return the names in an archive, none if it cannot be read as one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # a damaged directory breaks zipfile in many ways
        return []


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive after checking that its members are distinct, in the clear, and no larger than the file.

    Raises:
        CheckpointError: They are not, or the archive is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise CheckpointError(f"damaged zip archive: {error}") from error
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
    """Read an archive of arrays; object arrays, which hold pickles, are refused."""
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    with open_zip(path) as archive:
        members = archive.infolist()
        _check_sizes(members)
        for member in members:
            name = member.filename.removesuffix(".npy")
            array = _array(path, archive, member)
            if array is None:
                others.append(name)
            else:
                tensors[name] = array
    found = contents_of(dotted(tensors), key=options.key)
    notes = [*found.notes, f"left out what is not a number: {', '.join(others)}"] if others else found.notes
    return replace(found, notes=tuple(notes))


def dotted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
    if unpacked > max(_LARGEST_SURPRISE, _LARGEST_RATIO * packed):
        raise CheckpointError(f"refused: {packed:,} bytes that would unpack to {unpacked:,}")


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor | None:
    """Return one member as a tensor, or ``None`` if it holds text."""
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file, member)
        if dtype.kind in "SU":
            return None
        if dtype.kind not in _PLAIN_KINDS or dtype.itemsize > 16:
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
            place = _place(path, member) + start
            if place % dtype.itemsize == 0:
                return torch.from_numpy(np.memmap(path, dtype, "c", place, shape, order))
        flat = np.frombuffer(file.read(size), dtype).astype(dtype.newbyteorder("="), copy=True)
        return torch.from_numpy(flat.reshape(shape, order=order))


def _header(file: Any, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except Exception as error:
        raise CheckpointError(f"damaged: {member.filename}: {error}") from error


def _place(path: Path, member: zipfile.ZipInfo) -> int:
    """Return the offset of a stored member's bytes, by its local header, which may differ from the directory's."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL_HEADER)
    name, extra = struct.unpack_from("<HH", local, 26)
    return int(member.header_offset + _LOCAL_HEADER + name + extra)
