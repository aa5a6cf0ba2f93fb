"""What a pickle that was read as data stands for: plain containers, strings, numpy's arrays, and inert objects.

Nothing that a file names is called. Arrays are made here, of bytes that the file holds; an object of a class that is
not known here is a record of the class's name and of what the object held.
"""

from __future__ import annotations

import builtins
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transferkit.checkpoints._inert import (
    Call,
    Global,
    Inert,
    Pair,
    Pickle,
    collisions,
    refuse_collisions,
)
from transferkit.errors import CheckpointError, listed

_PLAIN_DTYPES = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("builtins", "__builtin__")
_BUILTIN_NAMES = ("set", "frozenset", "bytearray", "bytes", "complex")
_JAX_ARRAYS = (
    Global("jax._src.array", "_reconstruct_array"),
    Global("jax._src.device_array", "reconstruct_device_array"),
)
_JOBLIB_ARRAY = Global("joblib.numpy_pickle", "NumpyArrayWrapper")
_RECONSTRUCTORS = tuple(Global(module, "_reconstructor") for module in ("copyreg", "copy_reg"))
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")

_KNOWN = frozenset(
    [Global("numpy", name) for name in ("ndarray", "dtype")]
    + [Global(module, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar")]
    + [Global(module, "_frombuffer") for module in _BUFFER_MODULES]
    + [Global(module, name) for module in _BUILTINS for name in _BUILTIN_NAMES]
    + [Global("collections", name) for name in ("OrderedDict", "Counter", "defaultdict", "deque")]
    + [Global("pathlib", name) for name in _PATHS]
    + [Global("pathlib._local", name) for name in _PATHS]
    + [
        Global("_codecs", "encode"),
        Global("numpy.ma.core", "_mareconstruct"),
        _JOBLIB_ARRAY,
        *_JAX_ARRAYS,
        *_RECONSTRUCTORS,
    ]
)

# What no weights need, and what only a file that is there to run a program names. Nothing of it would run here in any
# case; whoever sees such a name should not load the file elsewhere either. Of Python's builtins, types are inert.
_PROGRAMS = frozenset(
    (
        *(
            "os",
            "posix",
            "nt",
            "subprocess",
            "pty",
            "sys",
            "ctypes",
            "socket",
            "shutil",
            "importlib",
            "imp",
            "runpy",
        ),
        *("code", "codeop", "pdb", "bdb", "timeit", "pickle", "_pickle", "marshal", "webbrowser", "commands"),
        *(
            "io.open",
            "io.FileIO",
            "_io.open",
            "_io.FileIO",
            "torch.load",
            "torch.save",
            "torch.hub",
            "torch.jit.load",
        ),
        *(
            "torch.package",
            "torch._inductor",
            "torch.utils.cpp_extension",
            "torch.serialization.load",
            "joblib.load",
        ),
        *(
            "numpy.load",
            "numpy.save",
            "numpy.memmap",
            "numpy.fromfile",
            "numpy.lib.npyio",
            "numpy.testing._private",
        ),
    )
)
_EVALUATORS = frozenset(
    ["eval", "exec", "execfile", "compile", "open", "file", "__import__", "input", "breakpoint"]
)


def runs_programs(name: Global) -> bool:
    """Whether a name belongs to what starts programs, opens files or evaluates text."""
    if name.module in _BUILTINS:
        return name.name.partition(".")[0] in _EVALUATORS
    parts = str(name).split(".", 3)
    return any(".".join(parts[:count]) in _PROGRAMS for count in (1, 2, 3))


class PlainReader:
    """Turns records of calls into dicts, lists, tuples, strings, numbers, numpy arrays and inert objects.

    Python 2's strings become ``str``. An object that occurs twice is one object in the result too. The arrays are
    copies, since in the file they are not aligned as a tensor must be.

    Attributes:
        unknown: Names in the pickles read that are not known here, so that what is made with them is inert.

    Args:
        size: Bytes of the file, which bounds what is made of it.
    """

    def __init__(self, size: int) -> None:
        self.bytes_left = size  # an honest array's bytes are in the file, and no two arrays share them
        self.done: dict[int, Any] = {}
        self.pending: list[tuple[Inert, Call]] = []  # objects whose content is not looked at yet
        self.labels: dict[int, str] = {}
        self.unknown: set[str] = set()
        self.collisions = 0

    def read(self, pickle: Pickle) -> Any:
        """Return what a pickle stands for.

        Raises:
            CheckpointError: It names what runs programs, or its arrays do not match their data.
        """
        self.note_names(pickle)
        found = self.plain(pickle.value)
        while self.pending:  # not within each other, since objects refer to themselves and to each other
            inert, call = self.pending.pop()
            inert.content = self._content(call)
        return found

    def note_names(self, pickle: Pickle) -> None:
        """Keep the names that are not known; refuse those of programs."""
        _refuse_programs(sorted(str(name) for name in pickle.globals if runs_programs(name)))
        builtin = (*_BUILTINS, "ml_dtypes")
        self.unknown |= {
            str(name) for name in pickle.globals if not self.knows(name) and name.module not in builtin
        }

    def knows(self, name: Global) -> bool:
        """Whether this reader makes of a name what it stands for."""
        return name in _KNOWN

    def plain(self, value: Any) -> Any:
        """Return what a value of a pickle stands for."""
        if value is None or isinstance(value, str | int | float):
            return value
        if id(value) not in self.done:
            self.done[id(value)] = _UNFINISHED
            self.done[id(value)] = self._made(value)
        if self.done[id(value)] is _UNFINISHED:
            raise CheckpointError("refused: the pickle holds an object that contains itself")
        return self.done[id(value)]

    def key(self, key: Any) -> Any:
        """Return a dict's key: a string or number, or a label for what is neither."""
        if isinstance(key, bytes):
            return text_of(key)
        if isinstance(key, tuple):
            return tuple(map(self.key, key))
        if isinstance(key, Call):
            made = self.plain(key)
            label = f"{made}" if isinstance(made, Inert) else type(made).__name__
            plain = isinstance(made, str | int | float)
            return made if plain else self.labels.setdefault(id(key), f"<{label} {len(self.labels)}>")
        return key

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
        if isinstance(value, Global):
            return value
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
        function = call.function
        if isinstance(function, Call):
            maker = self.plain(function)
            return self.inert(f"{maker.name if isinstance(maker, Inert) else type(maker).__name__}()", call)
        if not isinstance(function, Global):
            raise CheckpointError("refused: the pickle calls something that is not a name")
        known = self.knows(function)
        if function.module in _BUILTINS and not known and not _is_type(function.name):
            _refuse_programs([str(function)])
        try:
            return self.called(function, call) if known else self.inert(str(function), call)
        except CheckpointError:  # a ValueError too
            raise
        except (TypeError, ValueError, IndexError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"damaged pickle: {function}: {error}") from error

    def inert(self, name: str, call: Call, unreadable: str = "") -> Inert:
        """Return what stands for the result of a call that is not made."""
        found = Inert(name, unreadable=unreadable)
        if not unreadable:
            self.pending.append((found, call))
        return found

    def _content(self, call: Call) -> Any:
        """Return what an object held: its attributes and keys, or else what it was made of."""
        content: dict[Any, Any] = {}
        states = call.state if _is_slots(call.state) else (call.state,)
        for state in states:
            if state is not None:
                content |= self.dict_of(state.items() if isinstance(state, dict) else [("state", state)])
        keyed = self.dict_of(item for item in call.items if isinstance(item, Pair))
        positional = [
            self.plain(value) for value in (*call.arguments, *call.items) if not isinstance(value, Pair)
        ]
        if not content and not keyed:
            return positional[0] if len(positional) == 1 else positional
        content |= {f"{key}_" if key in content else key: value for key, value in keyed.items()}
        return content | ({"made of": positional} if positional else {})

    def called(self, function: Global, call: Call) -> Any:
        """Return what a call of a known name would."""
        name, arguments = function.name, call.arguments
        if name == "_reconstruct":
            if arguments[0] != Global("numpy", "ndarray") and not isinstance(call.state, tuple):
                return self.inert(str(arguments[0]), call)
            return self.array(*_array_state(call.state))
        if name == "_mareconstruct":
            return self.inert(str(function), call, unreadable="a masked array")
        if name == "dtype":
            return str(arguments[0])
        if function in _JAX_ARRAYS:
            return self.array(*_array_state(arguments[2]))
        if function == _JOBLIB_ARRAY:
            if call.items and isinstance(call.items[0], Call):  # objects, pickled by numpy
                return self.plain(call.items[0])
            return self.array(
                call.state["shape"], call.state["dtype"], call.state["order"] == "F", call.items[0]
            )
        if function in _RECONSTRUCTORS:
            of = Call(arguments[0], arguments[2:] if arguments[2] is not None else (), call.state, call.items)
            return self._result(of)
        if name in _PATHS:
            return "/".join(map(text_of, arguments)).replace("//", "/")
        if name == "_frombuffer":
            data, dtype, shape, order = arguments
            return self.array(shape, dtype, order == "F", data)
        if name == "scalar":
            dtype, data = arguments
            return Inert("numpy object") if _is_objects(dtype) else _item(self.array((), dtype, False, data))
        if name in ("OrderedDict", "Counter", "defaultdict"):
            first = arguments[0] if arguments and name != "defaultdict" else ()
            found = self.dict_of([*(first.items() if isinstance(first, dict) else first), *call.items])
            return Counter(found) if name == "Counter" else found
        if name in ("set", "frozenset", "deque"):
            return [self.plain(item) for item in [*(arguments[0] if arguments else ()), *call.items]]
        if name == "complex":
            return complex(*arguments)
        if name in ("encode", "bytearray", "bytes"):
            return str(self.taken(raw_data(call)), "latin1")
        raise CheckpointError(f"refused: the pickle calls {function}")

    def array(self, shape: Any, dtype: Any, fortran: Any, data: Any) -> Any:
        """Return an array, or a list of objects, after checking its declared size against what is there."""
        if not isinstance(shape, tuple) or not all(
            isinstance(side, int) and 0 <= side < 2**40 for side in shape
        ):
            raise ValueError(f"an array of shape {shape!r}")
        if isinstance(data, list):
            return self._objects(shape, data)
        kind, raw = _dtype(dtype), self.taken(raw_data(data))
        if len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError(f"an array of shape {shape} and {kind} with {len(raw)} bytes of data")
        if kind.kind in "USMmV":
            return _words(np.frombuffer(raw, kind), shape)
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="), copy=True)
        made = np.ascontiguousarray(flat.reshape(shape, order="F")) if fortran else flat.reshape(shape)
        special = _special(dtype)
        return made if special is None else torch.from_numpy(made).view(special)

    def _objects(self, shape: tuple[int, ...], data: list[Any]) -> Any:
        if len(data) != math.prod(shape):
            raise ValueError(f"an array of shape {shape} with {len(data)} objects")
        return [self.plain(item) for item in data] if shape else self.plain(data[0])

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


def _refuse_programs(names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"refused: reading it the ordinary way would import {listed(names)}, which no weights need. Nothing in "
            "it ran here. Ask for a file with the weights alone: safetensors, or torch.save(model.state_dict(), ...)"
        )


def _is_type(name: str) -> bool:
    """Whether calling one of Python's builtins only makes an object."""
    return name in ("getattr", "unicode", "long", "xrange") or isinstance(vars(builtins).get(name), type)


_UNFINISHED = object()
_WORDS = re.compile(r"[US]\d{1,4}|[mM]8")  # text and dates
_MOST_WORDS = 1000  # values that are kept of an array that holds no numbers


def _is_slots(state: Any) -> bool:
    """Whether a state is that of a class with slots: a dict of attributes or none, and a dict of slots."""
    return isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, dict | None) for part in state)


def _dtype(call: Any) -> np.dtype[Any]:
    """Return a dtype of plain numbers or of text."""
    if not isinstance(call, Call) or call.function != Global("numpy", "dtype"):
        raise ValueError("a dtype that is none")
    if special := _special(call):
        return np.dtype(f"u{special.itemsize}")
    code = text_of(call.arguments[0])
    if code not in _PLAIN_DTYPES and not _WORDS.fullmatch(code):
        raise CheckpointError(
            f"refused: the pickle holds an array of dtype {code!r}; only numbers, text and objects are read"
        )
    order = "=" if call.state is None else text_of(call.state[1])
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"byte order {order!r}")
    return np.dtype(code).newbyteorder({"|": "="}.get(order, order))  # type: ignore[arg-type]


def _special(call: Any) -> torch.dtype | None:
    """Return torch's word for a dtype that numpy has from ml_dtypes, as JAX's bfloat16."""
    kind = call.arguments[0] if isinstance(call, Call) and call.arguments else None
    found = vars(torch).get(kind.name) if isinstance(kind, Global) and kind.module == "ml_dtypes" else None
    return found if isinstance(found, torch.dtype) else None


def _is_objects(dtype: Any) -> bool:
    return isinstance(dtype, Call) and text_of(dtype.arguments[0]) in ("O8", "O4", "O")


def _words(flat: NDArray[Any], shape: tuple[int, ...]) -> Any:
    """Return an array of text or dates as a plain value, or what stands for a long one."""
    if len(flat) > _MOST_WORDS or flat.dtype.kind in "mM":
        return Inert(f"numpy array {flat.dtype} {list(shape)}")
    values = [str(value, "latin1") if isinstance(value, bytes) else str(value) for value in flat]
    return values if shape else values[0]


def _item(array: Any) -> Any:
    """Return the one value of an array without dimensions."""
    return array.item() if isinstance(array, np.ndarray | torch.Tensor) else array


def raw_data(value: Any) -> bytes | memoryview:
    """Return raw bytes; Python 3 writes them as text in the protocols that Python 2 can read."""
    if isinstance(value, Call) and isinstance(value.function, Global):
        name, arguments = value.function.name, value.arguments
        if name == "encode" and isinstance(arguments[0], str) and arguments[1:] in (("latin1",), ("latin-1",)):
            return arguments[0].encode("latin1")
        if name in ("bytes", "bytearray"):
            return raw_data(arguments[0]) if arguments else b""
    if isinstance(value, bytes | memoryview):
        return value
    raise ValueError(f"data that is a {type(value).__name__}")


def text_of(value: Any) -> str:
    """Return a dict key or a name as text."""
    return str(value, "latin1") if isinstance(value, bytes) else str(value)
