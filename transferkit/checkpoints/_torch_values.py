"""Torch's tensors in a pickle that was read as data: views of flat storages, which lie in the file beside it.

Tensors are made here, of bytes that the file holds, so that what was checked is what is used:
``torch.load(weights_only=True)`` reads a file once more by rules of its own, and lets through memory that is never
filled, tensors that grow their storage, and calls that only cost time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._inert import Call, Global, Persistent
from transferkit.checkpoints._values import PlainReader, raw_data, text_of
from transferkit.errors import CheckpointError

# Storage classes by name, as torch's pickles mention them.
_STORAGE_DTYPES: Mapping[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,  # of quantized tensors, which are named and left
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}
_TENSOR_MODULES = ("torch", "torch.cuda", "torch.storage")
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
_REBUILD = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETER = tuple(f"torch._utils._rebuild_parameter{kind}" for kind in ("", "_with_state"))
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_VARIABLES = ("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.autograd.variable.Variable")
_PLAIN_TENSORS = ("torch.Tensor", "torch._tensor.Tensor", *_VARIABLES)
_SCRIPT = "torch.jit._pickle."
_IN_BYTES = Global("torch.storage", "_load_from_bytes")
_HARMLESS = ("torch.Size", "torch.device", "torch.serialization._get_layout", *_PLAIN_TENSORS)
_LARGEST_REPEAT = 1 << 28  # bytes of tensors that repeat a smaller storage (stride 0), should they be copied
_NOT_PLAIN = {
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has a shape and no values",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
}

LoadStorage = Callable[[str, torch.dtype, int], Tensor]


class TorchReader(PlainReader):
    """Turns records of calls into tensors and plain containers, whose keys stay numbers where they are.

    Args:
        size: Bytes of the pickle.
        load: Returns a storage as a flat tensor, given its key, dtype and number of elements; called once for each.
        nested: Returns the storage that a file inside the pickle holds, as pickles of tensors have them.
    """

    def __init__(
        self, size: int, load: LoadStorage, nested: Callable[[memoryview], Tensor] | None = None
    ) -> None:
        super().__init__(size)
        self.load, self.nested = load, nested
        self.storages: dict[str, Tensor] = {}  # flat tensors by storage key
        self.tensors: dict[str, Tensor] = {}  # by key, in the tar archive, whose pickle refers to whole tensors
        self.repeats_left = _LARGEST_REPEAT

    def knows(self, name: Global) -> bool:
        """Whether this reader makes of a name what it stands for."""
        if super().knows(name) or (name.module == "torch._utils" and name.name.startswith("_rebuild_")):
            return True
        if name.module in _TENSOR_MODULES and name.name.endswith(("Storage", "Tensor")):
            return True
        is_constant = name.module == "torch" and isinstance(vars(torch).get(name.name), _CONSTANTS)
        return (
            is_constant
            or str(name) in (*_HARMLESS, _FROM_TYPE)
            or str(name).startswith(_SCRIPT)
            or name == _IN_BYTES
        )

    def _made(self, value: Any) -> Any:
        if isinstance(value, Persistent):
            tensor = self.tensors.get(text_of(value.key)) if isinstance(value.key, str | bytes | int) else None
            return self.storage(value) if tensor is None else tensor
        return super()._made(value)

    def called(self, function: Global, call: Call) -> Any:
        """Return what a call of a known name would."""
        name, arguments = str(function), call.arguments
        if name in _REBUILD:
            return self.tensor(*arguments[:4], *(arguments[6:7] if name == _REBUILD[2] else ()))
        if name in (*_PARAMETER, *_VARIABLES):
            return self.plain(arguments[0] if arguments else call.state[0])
        if name == _FROM_TYPE and str(arguments[1]) in _PLAIN_TENSORS:
            return self.plain(Call(arguments[0], arguments[2]))
        if name == _FROM_TYPE or function.module == "torch._utils":
            what = _NOT_PLAIN.get(name) or f"as {arguments[1] if name == _FROM_TYPE else name} makes it"
            return self.inert(name, call, unreadable=what)
        if name == "torch.Size" or name.startswith(_SCRIPT):
            return self.plain(arguments[0])
        if name == "torch.device":
            return ":".join(str(part) for part in arguments)
        if function == _IN_BYTES:
            return self.storage(call)
        return super().called(function, call)

    def tensor(self, reference: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None) -> Tensor:
        """Return a view of a storage."""
        flat = self.storage(reference)
        if dtype is not None:
            kind = vars(torch).get(dtype.name) if isinstance(dtype, Global) else None
            if not isinstance(kind, torch.dtype) or flat.dtype != torch.uint8:
                raise ValueError(f"a tensor of dtype {dtype}")
            flat = flat.view(kind)
        return self.view_of(flat, offset, shape, stride)

    def storage(self, reference: Any) -> Tensor:
        """Return the storage that a pickle refers to as a flat tensor."""
        if isinstance(reference, Call) and reference.function == _IN_BYTES and self.nested is not None:
            key = f"in bytes {id(reference)}"
            if key not in self.storages:
                self.storages[key] = self.nested(memoryview(self.taken(raw_data(reference.arguments[0]))))
            return self.storages[key]
        key, view, dtype, count = storage_of(reference)
        if key not in self.storages:
            self.storages[key] = self.load(key, dtype, count)
        flat = self.storages[key]
        if flat.dtype != dtype or count > flat.numel():
            raise CheckpointError(
                f"refused: storage {key!r} of {count:,} {dtype} is one of {flat.numel():,} {flat.dtype}"
            )
        return flat if view is None else self.view_of(flat, view[1], (view[2],), (1,))

    def view_of(self, flat: Tensor, offset: Any, shape: Any, stride: Any) -> Tensor:
        """Return a view of a storage after checking that it lies inside and hardly repeats it."""
        sizes = [*shape, *stride, offset]
        if len(shape) != len(stride) or not all(isinstance(size, int) and size >= 0 for size in sizes):
            raise CheckpointError(f"damaged: a tensor of shape {shape} and stride {stride}")
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if 0 not in shape and last >= flat.numel():
            raise CheckpointError(
                f"damaged: a tensor of shape {shape} over a storage of {flat.numel():,} elements"
            )
        if math.prod(shape) > flat.numel():
            self.repeats_left -= math.prod(shape) * flat.itemsize
            if self.repeats_left < 0:
                raise CheckpointError(
                    f"refused: a tensor of shape {shape} over a storage of {flat.numel():,} elements"
                )
        return torch.as_strided(flat, tuple(shape), tuple(stride), offset)


def storage_of(reference: Any) -> tuple[str, tuple[Any, int, int] | None, torch.dtype, int]:
    """Return the key of a storage, the view of it as (key, offset, count) or ``None``, its dtype and its length."""
    key = reference.key if isinstance(reference, Persistent) else ()
    match key:
        case ("storage" | b"storage", Global(), str(name) | bytes(name), _, int(count)) if count >= 0:
            view = None
        case (
            ("storage" | b"storage"),
            Global(),
            str(name) | bytes(name),
            _,
            int(count),
            (None | (_, int(), int())) as view,
        ) if count >= 0:
            pass
        case _:
            raise CheckpointError("refused: a reference to something that is not a storage")
    return text_of(name), view, storage_dtype(key[1]), count


def storage_dtype(kind: Any) -> torch.dtype:
    """Return the dtype of a storage class."""
    name = kind.name if isinstance(kind, Global) else ""
    if name not in _STORAGE_DTYPES:
        raise CheckpointError(
            f"storages of class {kind} cannot be read; save the model's state dict with plain tensors and read that"
        )
    return _STORAGE_DTYPES[name]


def flat_tensor(raw: bytes | memoryview, dtype: torch.dtype) -> Tensor:
    """Return raw bytes as a one-dimensional tensor, copied, since in the file they are not aligned."""
    return torch.frombuffer(bytearray(raw), dtype=dtype) if len(raw) else torch.empty(0, dtype=dtype)
