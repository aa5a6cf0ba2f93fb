"""torch's files: zip archives, and those of torch 1.5 and before, read from the pickle that was checked."""

from __future__ import annotations

import mmap
import re
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from transferkit.checkpoints._archives import LARGEST_SURPRISE, open_zip, place_of, zip_names
from transferkit.checkpoints._inert import Call, Persistent, Pickle, children_of
from transferkit.checkpoints._pickles import ByteReader, read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._values import PlainReader, TorchReader, flat_tensor, storage_dtype, storage_of
from transferkit.checkpoints.neon._reader import is_neon, neon_contents
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
    """Read a torch zip archive; its tensors are mapped from the file."""
    return contents_of(load_torch_zip(path, trusted=options.trusted), key=options.key)


def load_torch_zip(path: Path, *, trusted: bool = False, mapped: bool = True) -> Any:
    """Return what was saved: tensors and plain containers, or whatever torch makes of it if the caller trusts it.

    Args:
        path: The file.
        trusted: Let torch read it, and run what it brings.
        mapped: Leave the tensors' bytes in the file until they are used.

    Raises:
        CheckpointError: The file asks for code to run, claims more than it holds, or is damaged.
    """
    if trusted:
        return _trusted(path)
    with open_zip(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        name = pickle_in(members)
        program = archive.read(name)
        storages = _Storages(path, archive, members, name.removesuffix(PICKLE), mapped)
        return TorchReader(len(program), storages.load).read(read_pickle(program))


def _trusted(path: Path) -> Any:
    """Return what torch makes of a file, which may run any program."""
    try:
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=False)
    except Exception as error:
        raise CheckpointError(f"torch cannot read it: {error}") from error


def pickle_in(members: dict[str, zipfile.ZipInfo]) -> str:
    """Return the name of an archive's pickle; refuse archives that hold more than a state dict, or two."""
    _refuse_programs(members)
    packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"refused: {packed[0]!r} is compressed, which torch never does")
    # Torch looks for names without regard to case, in the folder of the first member.
    found = [name for name in members if name.rpartition("/")[2].casefold() == PICKLE]
    if len(found) != 1 or len({name.casefold() for name in members}) != len(members):
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


def _refuse_programs(members: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse archives that hold a program along with its weights."""
    names = {name.rpartition("/")[2] for name in members}
    if "constants.pkl" in names:
        raise CheckpointError(
            "a TorchScript archive, which holds a program. Where it may run, save its weights alone: "
            "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
        )
    if {"archive_format", "serialized_exported_program.json"} & names:
        raise CheckpointError(
            "a torch.export archive, which holds a program. Save its weights alone: "
            "torch.save(torch.export.load(path).state_dict, 'weights.pt')"
        )


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


# Plain pickles of arrays and tensors.


GZIP = b"\x1f\x8b"
_GZIP_FORMAT = 31  # of zlib
_CHUNK = 1 << 20

# The first bytes of a pickle of a dict or list: a protocol number and an instruction that makes one of them; in
# protocols 0 and 1 the instruction alone.
_BEGINNING = re.compile(rb"\x80[\x02-\x05][\x95}\](c]|\((dp?|lp?)\d*\n|}q|\]q|c[a-zA-Z_.]+\n", re.DOTALL)


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file that begins like this is a pickle."""
    return _BEGINNING.match(head) is not None


def _is_pickle(path: Path, head: bytes) -> bool:
    return (head.startswith(GZIP) or looks_like_pickle(head)) and path.name != ".metadata"


@register_reader("pickle", matches=_is_pickle, suffixes=(".p", ".prm", ".pkl", ".pickle"))
def read_pickle_file(path: Path, options: ReadOptions) -> Contents:
    """Read a pickle of containers and numpy arrays, also gzipped; nothing in it is imported or called."""
    buffer = _buffer(path)
    saved = PlainReader(len(buffer)).read(read_pickle(buffer))
    if is_neon(saved):
        return neon_contents(saved, options)
    return contents_of(saved, key=options.key)


def _buffer(path: Path) -> memoryview:
    """Return the bytes of a file: mapped, or unpacked within reason."""
    with path.open("rb") as file:
        if file.read(2) == GZIP:
            return _unpacked(path)
        if path.stat().st_size == 0:
            raise CheckpointError("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _unpacked(path: Path) -> memoryview:
    """Unpack a gzip file step by step; Python's own reader takes a minute for each gigabyte of padding behind it."""
    size = path.stat().st_size
    limit = size + LARGEST_SURPRISE
    unpacker, unpacked = zlib.decompressobj(_GZIP_FORMAT), bytearray()
    try:
        with path.open("rb") as file:
            while not unpacker.eof and len(unpacked) <= limit and (chunk := file.read(_CHUNK)):
                unpacked += unpacker.decompress(chunk, limit + 1 - len(unpacked))
            padding = not unpacker.unused_data.strip(b"\0") and _only_zeros(file)
    except zlib.error as error:
        raise CheckpointError(f"damaged gzip file: {error}") from error
    if len(unpacked) > limit:
        raise CheckpointError(
            f"refused: {size:,} bytes that would unpack to more than {limit:,}; unpack it (gunzip) and read what is "
            "inside"
        )
    if not unpacker.eof:
        raise CheckpointError("damaged gzip file: it ends too early")
    if not padding or not looks_like_pickle(bytes(unpacked[:64])):
        raise CheckpointError(
            "a gzip file that holds no pickle alone; unpack it (gunzip) and read what is inside"
        )
    return memoryview(unpacked)


def _only_zeros(file: IO[bytes]) -> bool:
    return all(chunk == bytes(len(chunk)) for chunk in iter(lambda: file.read(_CHUNK), b""))
