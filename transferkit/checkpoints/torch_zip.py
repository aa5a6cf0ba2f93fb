"""torch's own files since version 1.6: a zip archive of one pickle and the raw bytes of every storage.

``torch.load(weights_only=True)`` does the reading. Before it, the pickle is read as data and checked for what
``weights_only`` lets pass: sizes that the file does not hold, and calls that only cost time or memory.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from transferkit.checkpoints.archives import open_zip, zip_names
from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.nested import contents_of
from transferkit.checkpoints.pickles import Pickle, read_pickle
from transferkit.checkpoints.registry import register_reader
from transferkit.checkpoints.torch_pickle import check_torch_pickle, refusal_of
from transferkit.checkpoints.torch_version import check_torch_version
from transferkit.errors import CheckpointError

_LARGEST_PICKLE = 1 << 28
_PROTOCOL_2 = b"\x80\x02"


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(b"PK") and any(name.rpartition("/")[2] == "data.pkl" for name in zip_names(path))


@register_reader("torch", matches=_matches)
def read_torch_zip(path: Path, options: ReadOptions) -> Contents:
    """Read a torch zip archive; its tensors are mapped from the file."""
    return contents_of(load_torch_zip(path, trusted=options.trusted), key=options.key)


def load_torch_zip(path: Path, *, trusted: bool = False) -> Any:
    """Return what was saved, through ``weights_only`` unless the caller trusts the file.

    Raises:
        CheckpointError: The file asks for code to run, claims more than it holds, or is damaged.
    """
    if not trusted:
        check_torch_version()
        _check(path)
    try:
        return torch.load(str(path), map_location="cpu", mmap=True, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"refused by torch's weights_only: {error}") from error
    except Exception as error:
        raise CheckpointError(f"torch cannot read it: {error}") from error


def _check(path: Path) -> None:
    """Refuse an archive that is more, or claims more, than a state dict."""
    with open_zip(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        _refuse_programs(members)
        packed = [name for name, member in members.items() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise CheckpointError(f"refused: {packed[0]} is compressed, which torch never does")
        name = next(name for name in members if name.rpartition("/")[2] == "data.pkl")
        if members[name].file_size > _LARGEST_PICKLE:
            raise CheckpointError(f"refused: its pickle alone has {members[name].file_size:,} bytes")
        program = archive.read(name)
    if program[:2] != _PROTOCOL_2:
        raise CheckpointError(
            "its pickle is not of protocol 2, the only one that weights_only reads; save without pickle_protocol"
        )
    found = read_pickle(program)
    data = f"{name.removesuffix('data.pkl')}data/"
    sizes = {key.removeprefix(data): member.file_size for key, member in members.items()}
    blocked = _blocked(path, found)
    if blocked:
        raise CheckpointError(refusal_of(blocked))
    check_torch_pickle(found, sizes)


def _blocked(path: Path, found: Pickle) -> list[str]:
    """Return what the pickle would import that ``weights_only`` does not allow."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # an instruction that torch does not know; it will say so itself
        return sorted(
            str(name) for name in found.globals if not str(name).startswith(("torch.", "collections."))
        )


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
