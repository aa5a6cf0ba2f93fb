"""Build the tensors of a torch pickle that was read as data."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints.pickle_values import Call, Global, Persistent
from transferkit.checkpoints.torch_pickle import allowed_by_user, key_of
from transferkit.errors import CheckpointError

_KNOWN = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"),
        *("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"),
    }
)


class Builder:
    """Turns records of calls into tensors and plain containers.

    Attributes:
        storages: Flat tensors by storage key.
        tensors: Tensors by key, in the tar archive, where the pickle refers to whole tensors.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
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


def flat_tensor(raw: memoryview, dtype: torch.dtype) -> Tensor:
    """Return raw bytes as a one-dimensional tensor, copied, since in the file they lie anywhere."""
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


def numbers(format: str, buffer: memoryview, place: int) -> tuple[tuple[int, ...], int]:
    """Return the numbers at a place, and the place after them."""
    try:
        return struct.unpack_from(format, buffer, place), place + struct.calcsize(format)
    except struct.error as error:
        raise CheckpointError(f"damaged: it ends too early ({error})") from error
