"""torch's own files since version 1.6: a zip archive of one pickle and the raw bytes of every storage."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._archives import open_zip, place_of, zip_names
from transferkit.checkpoints._pickles import read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._values import TorchReader, flat_tensor
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

_LARGEST_PICKLE = 1 << 28  # bytes
_PICKLE = "data.pkl"


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(b"PK") and any(name.rpartition("/")[2] == _PICKLE for name in zip_names(path))


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
        name = _pickle_in(members)
        program = archive.read(name)
        storages = _Storages(path, archive, members, name.removesuffix(_PICKLE), mapped)
        return TorchReader(len(program), storages.load).read(read_pickle(program))


def _trusted(path: Path) -> Any:
    """Return what torch makes of a file, which may run any program."""
    try:
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=False)
    except Exception as error:
        raise CheckpointError(f"torch cannot read it: {error}") from error


def _pickle_in(members: dict[str, zipfile.ZipInfo]) -> str:
    """Return the name of an archive's pickle; refuse archives that hold more than a state dict, or two."""
    _refuse_programs(members)
    packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(f"refused: {packed[0]!r} is compressed, which torch never does")
    # Torch looks for names without regard to case, in the folder of the first member.
    found = [name for name in members if name.rpartition("/")[2].casefold() == _PICKLE]
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
