"""What a pickle that was read as data stands for: plain containers, strings, numpy's arrays and torch's tensors.

Nothing that a file names is called. Arrays and tensors are made here, of bytes that the file holds, so that what was
checked is what is used: ``torch.load(weights_only=True)`` reads a file once more by rules of its own, and lets
through memory that is never filled, tensors that grow their storage, and calls that only cost time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.checkpoints._inert import Call, Global, Persistent, Pickle, collisions, refuse_collisions
from transferkit.errors import CheckpointError, listed

_PLAIN_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")
_BUILTIN_NAMES = ("set", "frozenset", "bytearray", "bytes", "complex")

_KNOWN = frozenset(
    [Global("numpy", name) for name in ("ndarray", "dtype")]
    + [Global(module, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")]
    + [Global(module, "_frombuffer") for module in _BUFFER_MODULES]
    + [Global(module, name) for module in _BUILTINS for name in _BUILTIN_NAMES]
    + [Global("collections", name) for name in ("OrderedDict", "Counter")]
    + [Global("_codecs", "encode")]
)


class PlainReader:
    """Turns records of calls into dicts with string keys, lists, tuples, strings, numbers and numpy arrays.

    Python 2's strings become ``str``. An object that occurs twice is one object in the result too. The arrays are
    copies, since in the file they are not aligned as a tensor must be.

    Args:
        size: Bytes of the file, which bounds what is made of it.
    """

    def __init__(self, size: int) -> None:
        self.bytes_left = size  # an honest array's bytes are in the file, and no two arrays share them
        self.done: dict[int, Any] = {}
        self.collisions = 0

    def read(self, pickle: Pickle) -> Any:
        """Return what a pickle stands for.

        Raises:
            CheckpointError: It would import anything unknown, or its arrays do not match their data.
        """
        self.refuse_unknown(pickle)
        return self.plain(pickle.value)

    def refuse_unknown(self, pickle: Pickle) -> None:
        """Refuse a pickle that would import anything unknown, and name all of it."""
        blocked = sorted(str(name) for name in pickle.globals if not self.knows(name))
        if blocked:
            raise CheckpointError(self.refusal(blocked))

    def knows(self, name: Global) -> bool:
        """Whether a pickle that mentions this name can be read."""
        return name in _KNOWN

    def refusal(self, blocked: list[str]) -> str:
        """Return the message for a pickle that would import ``blocked``."""
        return f"refused: reading it the ordinary way would import {listed(blocked)}"

    def plain(self, value: Any) -> Any:
        """Return what a value of a pickle stands for."""
        if value is None or isinstance(value, str | int | float):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = self._made(value)
        return self.done[id(value)]

    def key(self, key: Any) -> Any:
        """Return a dict's key as text."""
        return _text(_no_object(key))

    def _made(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.dict_of(value.items())
        if isinstance(value, list):
            return [self.plain(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.plain(item) for item in value)
        if isinstance(value, bytes | memoryview):
            return str(value, "latin1")
        if isinstance(value, Call):
            return self._result(value)
        raise CheckpointError(f"refused: the pickle holds a {type(value).__name__} where a value should be")

    def dict_of(self, pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
        """Return a dict of pairs, no two of which may have the same key."""
        keyed = [(self.key(key), value) for key, value in pairs]
        self.collisions += collisions([key for key, _ in keyed], 0)
        refuse_collisions(self.collisions)
        found = {key: self.plain(value) for key, value in keyed}
        if len(found) != len(keyed):
            raise CheckpointError("refused: the pickle holds a dict with two keys that read the same")
        return found

    def _result(self, call: Call) -> Any:
        if not isinstance(call.function, Global):
            raise CheckpointError("refused: the pickle calls something that is not a name")
        try:
            return self.called(call.function, call)
        except CheckpointError:  # a ValueError too
            raise
        except (TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"damaged pickle: {call.function}: {error}") from error

    def called(self, function: Global, call: Call) -> Any:
        """Return what a call would."""
        name, arguments = function.name, call.arguments
        if function not in _KNOWN:
            raise CheckpointError(f"refused: the pickle calls {function}")
        if name == "_reconstruct":
            return self.array(*_array_state(call.state))
        if name == "_frombuffer":
            data, dtype, shape, order = arguments
            return self.array(shape, dtype, order == "F", data)
        if name == "scalar":
            dtype, data = arguments
            return self.array((), dtype, False, data).item()
        if name in ("OrderedDict", "Counter"):
            first = arguments[0] if arguments else ()
            found = self.dict_of([*(first.items() if isinstance(first, dict) else first), *call.items])
            return Counter(found) if name == "Counter" else found
        if name in ("set", "frozenset"):
            return [self.plain(item) for item in [*(arguments[0] if arguments else ()), *call.items]]
        if name == "complex":
            return complex(*arguments)
        if name in ("encode", "bytearray", "bytes"):
            return str(self.taken(_data(call)), "latin1")
        raise CheckpointError(f"refused: the pickle calls {function}")

    def array(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> NDArray[Any]:
        """Return an array after checking its declared size against the bytes that are there."""
        kind, raw = _dtype(dtype), self.taken(_data(data))
        if not isinstance(shape, tuple) or not all(
            isinstance(side, int) and 0 <= side < 2**40 for side in shape
        ):
            raise ValueError(f"an array of shape {shape!r}")
        if len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} and {kind} with {len(raw)} bytes of data")
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="), copy=True)
        return np.ascontiguousarray(flat.reshape(shape, order="F")) if fortran else flat.reshape(shape)

    def taken(self, raw: bytes | memoryview) -> bytes | memoryview:
        """Return data that is about to be copied, unless more was copied than there is."""
        self.bytes_left -= len(raw)
        if self.bytes_left < 0:
            raise ValueError("arrays and strings with more data than the file holds")
        return raw


def _array_state(state: Any) -> tuple[Any, ...]:
    """Return (shape, dtype, fortran, data) of an array's pickled state."""
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        raise ValueError("an array without a state")
    return state[-4:]


def _dtype(call: Any) -> np.dtype[Any]:
    """Return a dtype of plain numbers."""
    if not isinstance(call, Call) or call.function != Global("numpy", "dtype"):
        raise ValueError("a dtype that is none")
    code = _text(call.arguments[0])
    if code not in _PLAIN_DTYPES:
        raise CheckpointError(
            f"refused: the pickle holds an array of dtype {code!r}; only plain numbers are read"
        )
    order = "=" if call.state is None else _text(call.state[1])
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"byte order {order!r}")
    return np.dtype(code).newbyteorder({"|": "="}.get(order, order))  # type: ignore[arg-type]


def _data(value: Any) -> bytes | memoryview:
    """Return raw bytes; Python 3 writes them as text in the protocols that Python 2 can read."""
    if isinstance(value, Call) and isinstance(value.function, Global):
        name, arguments = value.function.name, value.arguments
        if name == "encode" and isinstance(arguments[0], str) and arguments[1:] in (("latin1",), ("latin-1",)):
            return arguments[0].encode("latin1")
        if name in ("bytes", "bytearray"):
            return _data(arguments[0]) if arguments else b""
    if isinstance(value, bytes | memoryview):
        return value
    raise ValueError(f"data that is a {type(value).__name__}")


def _no_object(key: Any) -> Any:
    if isinstance(key, Call):
        raise CheckpointError("refused: the pickle holds a dict key that is neither a string nor a number")
    return key


def _text(value: Any) -> str:
    """Return a dict key or a name as text."""
    return str(value, "latin1") if isinstance(value, bytes) else str(value)


# Torch's tensors: views of flat storages, which lie in the file beside the pickle.

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
}
_TENSOR_MODULES = ("torch", "torch.cuda", "torch.storage")
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
_REBUILD = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETER = tuple(f"torch._utils._rebuild_parameter{kind}" for kind in ("", "_with_state"))
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_PLAIN_TENSORS = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
_HARMLESS = ("torch.Size", "torch.device", "torch.serialization._get_layout", *_PLAIN_TENSORS)
_LARGEST_REPEAT = 1 << 28  # bytes of tensors that repeat a smaller storage (stride 0), should they be copied
_DEQUANTIZE = "save the state dict of the model without quantization and read that"
_MAKE_PLAIN = (
    "load it with the library that wrote it, make its tensors plain with dequantize(), full_tensor() or to_dense(), "
    "save that and read it"
)

LoadStorage = Callable[[str, torch.dtype, int], Tensor]


class TorchReader(PlainReader):
    """Turns records of calls into tensors and plain containers, whose keys stay numbers where they are.

    Args:
        size: Bytes of the pickle.
        load: Returns a storage as a flat tensor, given its key, dtype and number of elements; called once for each.
    """

    def __init__(self, size: int, load: LoadStorage) -> None:
        super().__init__(size)
        self.load = load
        self.storages: dict[str, Tensor] = {}  # flat tensors by storage key
        self.tensors: dict[str, Tensor] = {}  # by key, in the tar archive, whose pickle refers to whole tensors
        self.repeats_left = _LARGEST_REPEAT
        self.allowed = _allowed_by_user()

    def knows(self, name: Global) -> bool:
        """Whether a pickle that mentions this name can be read."""
        if name in _KNOWN or (name.module == "torch._utils" and name.name.startswith("_rebuild_")):
            return True
        if name.module in _TENSOR_MODULES and name.name.endswith(("Storage", "Tensor")):
            return True
        is_constant = name.module == "torch" and isinstance(vars(torch).get(name.name), _CONSTANTS)
        return is_constant or str(name) in (*_HARMLESS, _FROM_TYPE) or str(name) in self.allowed

    def refusal(self, blocked: list[str]) -> str:
        """Return the message for a pickle that would import ``blocked``."""
        return (
            f"refused, since reading it would import {listed(blocked)}. Ask for a file with the plain state dict "
            "(torch.save(model.state_dict(), ...), or safetensors). Names that you know to be harmless, such as "
            "argparse.Namespace, can be allowed with torch.serialization.add_safe_globals. trusted=True reads this "
            "file all the same and lets it run any program as you: only for a file that you made yourself."
        )

    def key(self, key: Any) -> Any:
        """Return a dict's key, as text where it is text."""
        return _text(key) if isinstance(key, bytes) else _no_object(key)

    def _made(self, value: Any) -> Any:
        if isinstance(value, Persistent):
            tensor = self.tensors.get(_text(value.key)) if isinstance(value.key, str | bytes | int) else None
            if tensor is None:
                storage_of(value)  # one outside a tensor is checked, and left out
            return tensor
        return value if isinstance(value, Global) else super()._made(value)

    def called(self, function: Global, call: Call) -> Any:
        """Return what a call would; nothing for what the user allowed, since it is harmless and no tensor."""
        name, arguments = str(function), call.arguments
        if name in _REBUILD:
            return self.tensor(*arguments[:4], *(arguments[6:7] if name == _REBUILD[2] else ()))
        if name in (*_PARAMETER, _PLAIN_TENSORS[2]):
            return self.plain(arguments[0] if arguments else call.state[0])
        if name == _FROM_TYPE and str(arguments[1]) in _PLAIN_TENSORS:
            return self.plain(Call(arguments[0], arguments[2]))
        if name == "torch._utils._rebuild_qtensor":
            raise CheckpointError(f"it holds quantized tensors; {_DEQUANTIZE}")
        if name == "torch._utils._rebuild_meta_tensor_no_storage":
            raise CheckpointError("it holds meta tensors, which have a shape and no values")
        if name == _FROM_TYPE or function.module == "torch._utils":
            raise CheckpointError(f"it holds tensors that are not plain, as {name} makes them; {_MAKE_PLAIN}")
        if name == "torch.Size":
            return self.plain(arguments[0])
        if name == "torch.device":
            return ":".join(str(part) for part in arguments)
        return None if name in self.allowed else super().called(function, call)

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
    return _text(name), view, storage_dtype(key[1]), count


def storage_dtype(kind: Any) -> torch.dtype:
    """Return the dtype of a storage class."""
    name = kind.name if isinstance(kind, Global) else ""
    if name not in _STORAGE_DTYPES:
        raise CheckpointError(f"storages of class {kind} cannot be read; {_DEQUANTIZE}")
    return _STORAGE_DTYPES[name]


def flat_tensor(raw: bytes | memoryview, dtype: torch.dtype) -> Tensor:
    """Return raw bytes as a one-dimensional tensor, copied, since in the file they are not aligned."""
    return torch.frombuffer(bytearray(raw), dtype=dtype) if len(raw) else torch.empty(0, dtype=dtype)


def _allowed_by_user() -> set[str]:
    """Return the names that the user has declared safe with ``torch.serialization.add_safe_globals``."""
    items = torch.serialization.get_safe_globals()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in items}
