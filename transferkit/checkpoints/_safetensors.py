"""safetensors: a JSON header and raw bytes, safe by design, mapped by its own library."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, MissingExtraError
from transferkit.layers import natural_order

_LARGEST_HEADER = 100_000_000  # the library's own limit
_ORDER_NOTE = "safetensors does not keep the order of layers; they are in the natural order of their names"


def _matches(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= _LARGEST_HEADER


@register_reader("safetensors", matches=_matches, suffixes=(".safetensors",))
def read_safetensors(path: Path, options: ReadOptions) -> Contents:
    """Read a safetensors file; its tensors are mapped from the file."""
    return safetensors_contents(mapped_tensors(path), metadata_of(path))


def safetensors_contents(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Contents:
    """Return tensors in natural order, with the tied weights that ``safetensors.torch.save_model`` recorded."""
    ties = {name: kept for name, kept in metadata.items() if name not in tensors and kept in tensors}
    tensors = tensors | {name: tensors[kept] for name, kept in ties.items()}
    ordered = {name: tensors[name] for name in sorted(tensors, key=natural_order)}
    found = contents_of(ordered)
    plain = {name: value for name, value in metadata.items() if name not in ties}
    return replace(found, notes=(*found.notes, _ORDER_NOTE), metadata=plain, ordered=False)


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file by name.

    Raises:
        MissingExtraError: safetensors is not installed.
        CheckpointError: The file is damaged.
    """
    try:
        from safetensors import safe_open
    except ImportError:
        raise MissingExtraError(
            f"{path}: reading safetensors needs the package of that name: pip install transferkit[safetensors]"
        ) from None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a dict
    except Exception as error:
        raise CheckpointError(f"damaged safetensors file: {error}") from error


def metadata_of(path: Path) -> dict[str, str]:
    """Return the strings in the header's ``__metadata__``."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: Any = json.loads(file.read(min(length, _LARGEST_HEADER)))
    metadata = header.get("__metadata__") or {}
    return {str(name): str(value) for name, value in metadata.items()}
