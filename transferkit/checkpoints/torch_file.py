"""torch's own files: the zip archive that ``torch.save`` writes, and the bare pickle it wrote before 1.6."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.nested import contents_of
from transferkit.checkpoints.registry import register_reader
from transferkit.checkpoints.torch_version import check_torch_version
from transferkit.errors import CheckpointError


def _is_torch_zip(path: Path, head: bytes) -> bool:
    if not head.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") or name == "data.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


@register_reader("torch", matches=_is_torch_zip)
def read_torch_zip(path: Path, options: ReadOptions) -> Contents:
    """Read a torch zip archive; its tensors are mapped from the file."""
    return contents_of(load_torch(path, trusted=options.trusted, mmap=True), key=options.key)


def load_torch(path: Path, *, trusted: bool, mmap: bool) -> Any:
    """Return what ``torch.load`` finds, through ``weights_only`` unless the caller trusts the file.

    Raises:
        CheckpointError: The file asks for code to run, or is damaged.
    """
    if not trusted:
        check_torch_version()
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=not trusted)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:
        raise CheckpointError(f"torch cannot read it: {error}") from error


def _refusal(path: Path, message: str) -> str:
    try:
        blocked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        blocked = re.findall(r"GLOBAL ([\w.]+)", message)
    if not blocked:
        return f"refused by torch's weights_only: {message}"
    return (
        f"refused, since reading it would call {', '.join(sorted(blocked))}. Ask for a file with the plain "
        "state dict (torch.save(model.state_dict(), ...), or safetensors). trusted=True reads this one all the "
        "same and lets it run any program as you: only for a file that you made yourself."
    )
