"""Flax: variables as msgpack, and the .npz files of big_vision and of published vision transformers.

They are trees of arrays that do not tell what each layer is, so names and axes stay Flax's: the plan of a transfer
turns them by the target's modules. The collections (``params``, ``batch_stats``) of one layer are put together.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.checkpoints._state_dicts import check_names
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, MissingExtraError, listed
from transferkit.layers import are_sorted

_COLLECTIONS = ("params", "batch_stats")
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # flax's extension types
_CHUNKED = "__msgpack_chunked_array__"
_MOST_DEPTH = 64
_KINDS = "biufc"
_OPTIMIZERS = ("opt_state", "opt_states", "opt", "optimizer", "optimizer_state", "param_states")


def _matches(path: Path, head: bytes) -> bool:
    """Whether a file begins with a map whose first key is short text, and has parameters."""
    start = {0xDE: 3, 0xDF: 5}.get(head[0], 1) if head else 0
    is_map = bool(head) and (0x81 <= head[0] <= 0x8F or start > 1) and len(head) > start
    if not is_map or not 0xA1 <= head[start] <= 0xBF:
        return False
    key = head[start + 1 : start + 1 + head[start] - 0xA0]
    return key.isascii() and key.decode("ascii", "replace").isprintable() and b"params" in head


@register_reader("flax", matches=_matches, suffixes=(".msgpack",))
def read_flax(path: Path, options: ReadOptions) -> Contents:
    """Read what ``flax.serialization.to_bytes`` wrote."""
    try:
        import msgpack
    except ImportError:
        raise MissingExtraError(
            f"{path}: reading Flax's msgpack needs it: pip install transferkit[flax]"
        ) from None
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tree = msgpack.unpackb(
                content, ext_hook=_extension, object_pairs_hook=_once_each, raw=False, strict_map_key=False
            )
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:
        raise CheckpointError(f"damaged msgpack file: {error}") from error
    return flax_contents(dict(_leaves(tree, ())), options.key)


_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")


@register_reader(
    "orbax", matches=lambda path, head: path.is_dir() and any((path / name).is_file() for name in _ORBAX)
)
def read_orbax(path: Path, options: ReadOptions) -> Contents:
    """Refuse an Orbax folder, and say how to have a file of it."""
    raise CheckpointError(
        "an Orbax folder, whose arrays lie in a data base. Where it can be read, save it as one file, and read that: "
        "tree = orbax.checkpoint.StandardCheckpointer().restore(os.path.abspath(folder)); "
        "open('variables.msgpack', 'wb').write(flax.serialization.to_bytes(tree))"
    )


def _once_each(pairs: list[tuple[Any, Any]]) -> Any:
    found = {str(name): value for name, value in pairs}
    if len(found) != len(pairs):
        raise CheckpointError("refused: a name stands twice in one group")
    return _joined(found) if found.get(_CHUNKED) is True else found


def _joined(chunked: Mapping[str, Any]) -> Tensor:
    """Return an array that Flax divided, being larger than a message may be."""
    shape, chunks = (list(chunked[key].values()) for key in ("shape", "chunks"))
    whole = torch.cat([chunk.reshape(-1) for chunk in chunks])
    return whole.reshape([int(side) for side in shape])


def _extension(code: int, data: bytes) -> Any:
    """Return what one of Flax's extensions is: an array, or a plain value."""
    import msgpack

    if code == _COMPLEX:
        return complex(*msgpack.unpackb(data))
    if code not in (_ARRAY, _SCALAR):
        raise CheckpointError(f"refused: an extension of type {code}, which is not Flax's")
    shape, name, raw = msgpack.unpackb(data, raw=True)
    tensor = tensor_of(raw, str(name, "ascii"), tuple(shape))
    return tensor.item() if code == _SCALAR else tensor


def tensor_of(raw: bytes, name: str, shape: tuple[int, ...]) -> Tensor:
    """Return raw bytes as a tensor after checking their number against the shape.

    Raises:
        CheckpointError: The shape is another, or the dtype is not one of plain numbers.
    """
    bfloat16 = name in ("bfloat16", "V2")
    dtype = np.dtype("<i2") if bfloat16 else _dtype(name)
    if not all(isinstance(side, int) and side >= 0 for side in shape) or math.prod(
        shape
    ) * dtype.itemsize != len(raw):
        raise CheckpointError(f"damaged: an array of shape {shape} and {name} with {len(raw):,} bytes")
    tensor = torch.from_numpy(
        np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="), copy=True).reshape(shape)
    )
    return tensor.view(torch.bfloat16) if bfloat16 else tensor


def _dtype(name: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype("V")
    if dtype.kind not in _KINDS or dtype.itemsize > 16:
        raise CheckpointError(f"it holds an array of {name}; only plain numbers are read")
    return dtype


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what a tree holds, each with the names that lead to it."""
    if len(path) > _MOST_DEPTH:
        raise CheckpointError(f"refused: groups within groups, deeper than {_MOST_DEPTH}")
    if isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, (*path, str(name)))
    else:
        yield path, tree


# Names, whatever the container.


def is_flax(names: Collection[str]) -> bool:
    """Whether slashed names are those of a tree of Flax or JAX."""
    return any("/" in name and name.endswith(("/kernel", "/scale", "/embedding")) for name in names)


def flax_contents(leaves: Mapping[tuple[str, ...], Any], key: str | None = None) -> Contents:
    """Return the layers of a tree of variables, the collections of a layer together.

    Args:
        leaves: What it holds, by the names that lead to it.
        key: The part to take, dotted; ``None`` for all.
    """
    part = tuple(key.split(".")) if key else ()
    within = {path: value for path, value in leaves.items() if path[: len(part)] == part}
    tensors: dict[str, Tensor] = {}
    beside = Counter[str]()
    for path, value in within.items():
        state = next((name for name in path[:-1] if name in _OPTIMIZERS), "")
        if state or not isinstance(value, Tensor):
            beside[state] += 1
            continue
        kept = [name.replace(".", "_") for name in path[len(part) :] if name not in _COLLECTIONS]
        name = ".".join(kept)
        if name in tensors:
            raise CheckpointError(f"refused: two arrays are called {name!r}; say which is meant with key=")
        tensors[name] = value
    if not tensors:
        raise CheckpointError(f"it holds no arrays{f' under the key {key!r}' if key else ''}")
    check_names(tensors)
    names = [f"{name} ({count} arrays)" for name, count in beside.items() if name]
    return Contents(
        tensors,
        notes=(
            *([f"left out, being an optimizer's: {listed(names)}"] if names else []),
            "Flax does not tell what its layers are: each is turned by the layer that it is given to",
        ),
        metadata={".".join(p): v for p, v in within.items() if isinstance(v, str | int | float | bool)},
        ordered=not are_sorted(list(tensors)),
        layout="flax",
    )
