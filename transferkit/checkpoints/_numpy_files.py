"""numpy's files: .npz, whose stored arrays are mapped and compressed ones unpacked, and .npy; objects in them too."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from transferkit.checkpoints._archives import LARGEST_SURPRISE, open_zip, place_of, zip_names
from transferkit.checkpoints._pickle_files import unpickled
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._torch_files import mapped
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

_CHUNK = 1 << 20
_PLAIN_KINDS = "biufc"
_NPY = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16


def _matches(path: Path, head: bytes) -> bool:
    names = zip_names(path) if head.startswith(b"PK") else []
    return bool(names) and all(name.endswith(".npy") for name in names)


@register_reader("npz", matches=_matches, suffixes=(".npz",))
def read_npz(path: Path, options: ReadOptions) -> Contents:
    """Read an archive of arrays; what numpy pickled into it is inert."""
    saved: dict[str, Any] = {}
    notes: list[str] = []
    with open_zip(path) as archive:
        members = archive.infolist()
        _check_sizes(members)
        whole = np.memmap(path, np.uint8, "c")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in saved:
                raise CheckpointError(f"refused: two arrays are called {name!r}")
            saved[name], told = _array(path, archive, member, whole)
            notes += told
    others = [name for name, value in saved.items() if value is None]
    notes += [f"left out what is not a number: {listed(others)}"] if others else []
    return contents_of(dotted(saved), key=options.key, notes=notes)


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
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: NDArray[np.uint8]
) -> tuple[Any, list[str]]:
    """Return one member as a tensor, or its objects, and what there is to say of it; ``None`` where it holds text."""
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file, member.filename)
        if dtype.kind in "SU":
            return None, []
        if dtype.kind == "O":
            return unpickled(memoryview(_read(file, member.file_size - file.tell()).tobytes()))
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
            place = place_of(path, member, len(whole)) + start
            if place % dtype.itemsize == 0:
                flat = whole[place : place + size].view(dtype)
                return torch.from_numpy(flat.reshape(shape, order=order)), []
        flat = _read(file, size).view(dtype)
        native = flat.astype(dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native.reshape(shape, order=order)), []


def _read(file: IO[bytes], size: int) -> NDArray[np.uint8]:
    """Return so many bytes, which are in memory once."""
    raw = np.empty(size, np.uint8)
    for begin in range(0, size, _CHUNK):
        chunk = file.read(min(_CHUNK, size - begin))
        raw[begin : begin + len(chunk)] = np.frombuffer(chunk, np.uint8)
    return raw


def _header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except Exception as error:
        raise CheckpointError(f"damaged: {name}: {error}") from error


@register_reader("npy", matches=lambda path, head: head.startswith(_NPY), suffixes=(".npy",))
def read_npy(path: Path, options: ReadOptions) -> Contents:
    """Read one array; where it holds objects, what numpy pickled."""
    buffer = mapped(path)
    stream = io.BytesIO(buffer[:_LONGEST_HEADER])
    shape, fortran, dtype = _header(stream, path.name)
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if dtype.kind == "O":
        saved, notes = unpickled(buffer, start)
        return contents_of(saved, key=options.key, notes=notes)
    if dtype.kind not in _PLAIN_KINDS or dtype.itemsize > 16:
        raise CheckpointError(f"refused: an array of {dtype}; only plain numbers and pickled objects are read")
    if any(side < 0 for side in shape) or size > len(buffer) - start:
        raise CheckpointError(f"damaged: it declares a shape of {shape} and has {len(buffer):,} bytes")
    flat = np.frombuffer(buffer, dtype, math.prod(shape), start).astype(dtype.newbyteorder("="))
    return contents_of(flat.reshape(shape, order="F" if fortran else "C"), key=options.key)
