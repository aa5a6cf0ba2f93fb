"""torch's files from before version 1.6: a row of pickles and raw bytes, and the tar archive before that.

``weights_only`` does not read the tar archive, and for the row of pickles it allocates whatever memory a hostile
file asks for. Both are therefore read as data here, and tensors are built only from bytes that the file holds.

References:
    ``torch.serialization._legacy_load``.
"""

from __future__ import annotations

import mmap
import tarfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._pickles import ByteReader, Call, Global, Persistent, Pickle, read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints._torch_zip import allowed_by_user, key_of, refusal_of, storage_dtype, storages_in
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError

_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PROTOCOL = 1001
_TAR_MEMBERS = ("storages", "tensors", "pickle")

_KNOWN = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"),
        *("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"),
    }
)


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
    builder = _builder(saved)
    dtypes = storages_in(saved.value)
    for key in keys.value:
        dtype = dtypes.get(_text(key))
        if dtype is not None:
            builder.storages[_text(key)] = row.storage(dtype)
    return contents_of(builder.build(saved.value), key=options.key)


@register_reader("torch tar", matches=lambda path, head: head[257:262] == b"ustar" and bool(_members(path)))
def read_torch_tar(path: Path, options: ReadOptions) -> Contents:
    """Read the tar archive that ``torch.save`` wrote in its first year."""
    if options.trusted:
        return contents_of(torch.load(str(path), map_location="cpu", weights_only=False), key=options.key)
    buffer = _mapped(path)
    parts = {name: buffer[start:end] for name, (start, end) in _members(path).items()}
    saved = read_pickle(parts["pickle"])
    builder = _builder(saved)
    _tar_storages(parts["storages"], builder)
    _tar_tensors(parts["tensors"], builder)
    return contents_of(builder.build(saved.value), key=options.key)


def _tar_storages(buffer: memoryview, builder: Builder) -> None:
    row = _Row(buffer)
    for _ in range(_count(row.pickle().value, buffer)):
        key, _, kind = row.pickle().value
        builder.storages[_text(key)] = row.storage(storage_dtype(kind))
    for target, root, offset, count in row.pickle().value:
        flat = builder.storages[_text(root)]
        builder.storages[_text(target)] = view_of(flat, offset, (count,), (1,))


def _tar_tensors(buffer: memoryview, builder: Builder) -> None:
    row = _Row(buffer)
    for _ in range(_count(row.pickle().value, buffer)):
        key, storage, _ = row.pickle().value
        dimensions, _ = row.numbers("<ii")  # the second is padding
        if not 0 <= dimensions <= 64:
            raise CheckpointError(f"damaged: a tensor of {dimensions} dimensions")
        shape, stride = row.numbers(f"<{dimensions}q"), row.numbers(f"<{dimensions}q")
        offset = row.number("<q")
        builder.tensors[_text(key)] = view_of(builder.storages[_text(storage)], offset, shape, stride)


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Return the (start, end) of each part of a tar archive; nothing if it is not torch's."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            found = {
                member.name: (member.offset_data, member.offset_data + member.size)
                for member in archive
                if member.isreg() and not member.issparse() and 0 <= member.size <= size - member.offset_data
            }
    except Exception:  # a damaged header breaks tarfile in many ways
        return {}
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


def flat_tensor(raw: memoryview, dtype: torch.dtype) -> Tensor:
    """Return raw bytes as a one-dimensional tensor, copied, since in the file they are not aligned."""
    return torch.frombuffer(bytearray(raw), dtype=dtype) if len(raw) else torch.empty(0, dtype=dtype)


def view_of(flat: Tensor, offset: Any, shape: Any, stride: Any) -> Tensor:
    """Return a view of a storage after checking that it lies inside."""
    sizes = [*shape, *stride, offset]
    if len(shape) != len(stride) or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise CheckpointError(f"damaged: a tensor of shape {shape} and stride {stride}")
    last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= flat.numel():
        raise CheckpointError(f"damaged: a tensor of shape {shape} over a storage of {flat.numel():,} elements")
    return torch.as_strided(flat, tuple(shape), tuple(stride), offset)


def _builder(found: Pickle) -> Builder:
    """Return a builder for the pickle's value, or refuse what it would import."""
    builder = Builder()
    blocked = sorted(str(name) for name in found.globals if not builder.knows(name))
    if blocked:
        raise CheckpointError(refusal_of(blocked))
    return builder


class Builder:
    """Turns records of calls into tensors and plain containers."""

    def __init__(self) -> None:
        self.storages: dict[str, Tensor] = {}  # flat tensors by storage key
        self.tensors: dict[str, Tensor] = {}  # by key, in the tar archive, whose pickle refers to whole tensors
        self.done: dict[int, Any] = {}
        self.allowed = allowed_by_user()

    def knows(self, name: Global) -> bool:
        """Whether a pickle that mentions this name can be built."""
        is_torch = name.module in ("torch", "torch.cuda", "torch.storage")
        if is_torch and name.name.endswith(("Storage", "Tensor")):
            return True
        return str(name) in _KNOWN or str(name) in self.allowed

    def build(self, value: Any) -> Any:
        """Return a value with its tensors; what occurs twice is one object."""
        if isinstance(value, dict | list | tuple | Call | Persistent):
            if id(value) not in self.done:
                self.done[id(value)] = self._built(value)
            return self.done[id(value)]
        return str(value, "latin1") if isinstance(value, bytes | memoryview) else value

    def _built(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.build(key): self.build(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.build(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.build(item) for item in value)
        if isinstance(value, Persistent):
            return self._fetched(value)
        return self._called(value)

    def _fetched(self, reference: Persistent) -> Tensor:
        found = self.tensors.get(str(reference.key))
        if found is None:
            raise CheckpointError(f"damaged: a reference to {reference.key!r}, which is not in the file")
        return found

    def _called(self, call: Call) -> Any:
        name, arguments = str(call.function), call.arguments
        if name in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            storage, offset, shape, stride = arguments[:4]
            return view_of(self._storage(storage), offset, shape, stride)
        if name in ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"):
            return self.build(arguments[0] if arguments else call.state[0])
        if name in ("collections.OrderedDict", "collections.Counter"):
            pairs = [*(arguments[0] if arguments else ()), *call.items]
            return {self.build(key): self.build(item) for key, item in pairs}
        if name == "torch.Size":
            return self.build(arguments[0])
        if name == "torch.device":
            return ":".join(str(part) for part in arguments)
        if name in self.allowed:
            return None  # harmless, and no tensor
        raise CheckpointError(f"refused: the pickle calls {name}")

    def _storage(self, reference: Any) -> Tensor:
        if not isinstance(reference, Persistent):
            raise CheckpointError("damaged: a tensor without a storage")
        key, view = key_of(reference)
        if key not in self.storages:
            raise CheckpointError(f"damaged: storage {key!r} is not in the file")
        flat = self.storages[key]
        return flat if view is None else view_of(flat, view[1], (view[2],), (1,))


def _count(value: Any, buffer: memoryview) -> int:
    if not isinstance(value, int) or not 0 <= value <= len(buffer):
        raise CheckpointError(f"damaged: a count of {value!r}")
    return value


def _text(key: Any) -> str:
    return str(key, "ascii") if isinstance(key, bytes) else str(key)
