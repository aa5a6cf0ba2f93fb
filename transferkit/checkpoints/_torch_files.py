"""torch's files: zip archives and TorchScript, and those of torch 1.5 and before, read from the pickle checked."""

from __future__ import annotations

import json
import mmap
import re
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._archives import open_zip, place_of, zip_names
from transferkit.checkpoints._inert import Call, Inert, Persistent, Pickle, children_of
from transferkit.checkpoints._pickles import ByteReader, read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._torch_values import TorchReader, flat_tensor, storage_dtype, storage_of
from transferkit.checkpoints._values import PlainReader
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

_LARGEST_PICKLE = 1 << 28  # bytes
PICKLE = "data.pkl"


def _matches(path: Path, head: bytes) -> bool:
    if not head.startswith(b"PK") or path.suffix == ".distcp":  # a row of such archives
        return False
    return any(name.rpartition("/")[2] == PICKLE for name in zip_names(path))


@register_reader("torch", matches=_matches)
def read_torch_zip(path: Path, options: ReadOptions) -> Contents:
    """Read a torch zip archive, TorchScript's too; its tensors are mapped from the file."""
    if options.trusted:
        return contents_of(_trusted(path), key=options.key)
    saved, notes = load_inert(path)
    return contents_of(saved, key=options.key, notes=notes)


def load_torch_zip(path: Path, *, trusted: bool = False, mapped: bool = True) -> Any:
    """Return what was saved: tensors and plain containers, or whatever torch makes of it if the caller trusts it.

    Args:
        path: The file.
        trusted: Let torch read it, and run what it brings.
        mapped: Leave the tensors' bytes in the file until they are used.

    Raises:
        CheckpointError: The file holds objects of other classes, claims more than it holds, or is damaged.
    """
    if trusted:
        return _trusted(path)
    saved, notes = load_inert(path, mapped=mapped)
    if notes:
        raise CheckpointError(f"refused, since it holds more than tensors and plain values: {notes[0]}")
    return saved


def load_inert(path: Path, *, mapped: bool = True) -> tuple[Any, list[str]]:
    """Return what was saved, objects being inert, and what there is to say of it."""
    with open_zip(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        name = pickle_in(members)
        program, folder = archive.read(name), name.removesuffix(PICKLE)
        reader = TorchReader(len(program), _Storages(path, archive, members, folder, mapped).load)
        saved = reader.read(read_pickle(program))
        notes = notes_of(reader)
        if f"{folder}constants.pkl" in members:
            constants = read_pickle(archive.read(f"{folder}constants.pkl")).value
            count = len(constants) if isinstance(constants, tuple) else 1
            notes = ["TorchScript, whose program was not run"]
            notes += [f"left out {count} constants of its program"] if count else []
        return saved, notes


def notes_of(reader: PlainReader) -> list[str]:
    """Return a note of the names that a pickle would have imported, if there are any."""
    names = listed(sorted(reader.unknown))
    return [f"not imported, so that what is made of them is kept as inert values: {names}"] if names else []


def _trusted(path: Path) -> Any:
    """Return what torch makes of a file, which may run any program."""
    try:
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=False)
    except Exception as error:
        raise CheckpointError(f"torch cannot read it: {error}") from error


def pickle_in(members: dict[str, zipfile.ZipInfo]) -> str:
    """Return the name of an archive's pickle; refuse archives of which two readers would see different parts."""
    packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
    packed = [name for name in packed if name.endswith(PICKLE) or "/data/" in name]  # not TorchScript's program
    if packed:
        raise CheckpointError(f"refused: {packed[0]!r} is compressed, which torch never does")
    # Torch looks for names without regard to case, in the folder of the first member.
    found = [name for name in members if name.rpartition("/")[2].casefold() == PICKLE]
    if len(found) != 1 or len({name.casefold() for name in members}) != len(members) or _exported_in(members):
        raise CheckpointError(
            f"refused: readers would not agree on what it holds, with the names {listed(found or list(members), 4)}; "
            "ask for a file that torch.save wrote"
        )
    if members[found[0]].file_size > _LARGEST_PICKLE:
        raise CheckpointError(f"refused: its pickle alone has {members[found[0]].file_size:,} bytes")
    return found[0]


class _Storages:
    """The storages of an archive, each a member of its own."""

    def __init__(
        self,
        path: Path,
        archive: zipfile.ZipFile,
        members: dict[str, zipfile.ZipInfo],
        folder: str,
        mapped: bool,
    ) -> None:
        self.path, self.archive, self.members, self.folder = path, archive, members, folder
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b""
        self.swapped = order in (b"little", b"big") and order.decode() != sys.byteorder
        size = path.stat().st_size
        self.whole = torch.UntypedStorage.from_file(str(path), False, size) if mapped else None

    def load(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return a storage as a flat tensor."""
        member, size = self.members.get(f"{self.folder}data/{key}"), count * dtype.itemsize
        held = 0 if member is None else min(member.file_size, member.compress_size)
        if member is None or size > held:
            raise CheckpointError(
                f"refused: storage {key!r} of {count:,} elements, of which there are {held:,} bytes"
            )
        if self.whole is None:
            storage = flat_tensor(self.archive.read(member)[:size], torch.uint8).untyped_storage()
        else:
            place = place_of(self.path, member, self.whole.nbytes())
            storage = self.whole[place : place + size]
            storage = storage.clone() if place % dtype.itemsize else storage
        if self.swapped:
            storage.byteswap(dtype)  # type: ignore[no-untyped-call]
        return torch.empty(0, dtype=dtype).set_(storage)


# torch.export's archives: the weights raw, beside a description of each in JSON.


_EXPORTED = "data/weights/model_weights_config.json"
_LARGEST_CONFIG = 1 << 26  # bytes
# torch's numbers of dtypes, from one on.
_NUMBERED = "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool bfloat16"
_EXPORTED_DTYPES = {number: vars(torch)[name] for number, name in enumerate(_NUMBERED.split(), 1)}


def _exported_in(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(_EXPORTED)]


@register_reader(
    "torch export", matches=lambda path, head: head[:2] == b"PK" and bool(_exported_in(zip_names(path)))
)
def read_exported(path: Path, options: ReadOptions) -> Contents:
    """Read the weights beside an exported program, mapped from the file; the program is not run."""
    with open_zip(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        (name, *others) = _exported_in(members)
        if others or members[name].file_size > _LARGEST_CONFIG:
            raise CheckpointError(
                f"refused: several models, or a description of {members[name].file_size:,} bytes"
            )
        storages = _Storages(path, archive, members, name.removesuffix(_EXPORTED), True)
        reader = TorchReader(0, storages.load)
        found = {key: _exported(reader, said) for key, said in json.loads(archive.read(name))["config"].items()}
    notes = ["an exported program, which was not run; constants, as buffers that are not saved, are left out"]
    return contents_of(found, key=options.key, notes=notes)


def _exported(reader: TorchReader, said: dict[str, Any]) -> Any:
    """Return one exported tensor by its description."""
    meta = said["tensor_meta"]
    dtype = _EXPORTED_DTYPES.get(meta["dtype"])
    if dtype is None or said["use_pickle"]:
        return Inert(said["path_name"], unreadable="no plain tensor")
    shape, stride = (tuple(side["as_int"] for side in meta[key]) for key in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    count = 1 + offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if all(shape) else 0
    flat = reader.load(f"weights/{said['path_name']}", dtype, count)
    return reader.view_of(flat, offset, shape, stride)


# The files of torch 1.5 and before: pickles in a row, and tar archives.


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
    saved, reader = _read_row(mapped(path))
    return contents_of(saved, key=options.key, notes=notes_of(reader))


def stored_in(buffer: memoryview) -> Tensor:
    """Return the one storage that a pickled tensor keeps as a file of its own.

    Raises:
        CheckpointError: It is no such file, or holds more.
    """
    found = _read_row(buffer)[0]
    if not isinstance(found, Tensor):
        raise CheckpointError("refused: a file inside the pickle that is no storage of a tensor")
    return found


def _read_row(buffer: memoryview) -> tuple[Any, TorchReader]:
    """Return the object in a row of pickles, and what read it."""
    row = _Row(buffer)
    # Magic number, protocol, facts about the machine that wrote it, the object, the keys of its storages.
    _, protocol, machine, saved, keys = (row.pickle() for _ in range(5))
    if protocol.value != _PROTOCOL or not isinstance(keys.value, list):
        raise CheckpointError(f"damaged: protocol {protocol.value!r} instead of {_PROTOCOL}")
    if isinstance(machine.value, dict) and machine.value.get("little_endian") is False:
        raise CheckpointError(
            "written with the other byte order; read it on such a machine and save safetensors"
        )
    reader = TorchReader(saved.end - saved.start, absent)
    dtypes = _storages_in(saved.value)
    for key in map(_text, keys.value):
        if key in dtypes:
            reader.storages[key] = row.storage(dtypes[key])
    return reader.read(saved), reader


@register_reader("torch tar", matches=lambda path, head: head[257:262] == b"ustar" and bool(_members(path)))
def read_torch_tar(path: Path, options: ReadOptions) -> Contents:
    """Read the tar archive that ``torch.save`` wrote in its first year."""
    if options.trusted:
        return contents_of(torch.load(str(path), map_location="cpu", weights_only=False), key=options.key)
    buffer = mapped(path)
    parts = {name: buffer[start:end] for name, (start, end) in _members(path).items()}
    reader = TorchReader(len(parts["pickle"]), absent)
    _tar_storages(parts["storages"], reader)
    _tar_tensors(parts["tensors"], reader)
    return contents_of(reader.read(read_pickle(parts["pickle"])), key=options.key, notes=notes_of(reader))


def absent(key: str, dtype: torch.dtype, count: int) -> Tensor:
    """Refuse a storage that lies nowhere."""
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


def mapped(path: Path) -> memoryview:
    """Return the bytes of a file, read when they are used."""
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
