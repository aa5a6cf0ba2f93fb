"""torch's own files since version 1.6: a zip archive of one pickle and the raw bytes of every storage.

``torch.load(weights_only=True)`` does the reading. Before it, the pickle is read as data and checked for what
``weights_only`` lets through: sizes larger than the file, and calls that only cost time or memory.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from transferkit.checkpoints._archives import open_zip, zip_names
from transferkit.checkpoints._pickles import Call, Global, Persistent, Pickle, children_of, read_pickle
from transferkit.checkpoints._state_dicts import contents_of
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader
from transferkit.errors import CheckpointError, listed

# Storage classes by name, as torch's pickles mention them.
STORAGE_DTYPES: Mapping[str, torch.dtype] = {
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
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")

_HARMLESS = frozenset(
    {
        *("collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device", "_codecs.encode"),
        *("torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
        *("builtins.set", "builtins.complex", "__builtin__.set", "__builtin__.complex"),
    }
)
_QUANTIZED = "torch._utils._rebuild_qtensor"
_EMPTY = "torch._utils._rebuild_meta_tensor_no_storage"
_DEQUANTIZE = "save the state dict of the model without quantization and read that"
_PROTOCOL_2 = b"\x80\x02"
_LARGEST_PICKLE = 1 << 28  # bytes
_LARGEST_REPEAT = 1 << 22  # elements of a tensor that repeats a smaller storage (stride 0)


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


def check_torch_version(version: str | None = None) -> None:
    """Refuse a torch whose ``weights_only`` can run code, and warn of one in which it can corrupt memory.

    Args:
        version: ``torch.__version__`` if not given.

    Raises:
        CheckpointError: torch is older than 2.6.

    References:
        CVE-2025-32434 (fixed in torch 2.6.0), CVE-2026-24747 (fixed in torch 2.10.0).
    """
    version = version or torch.__version__
    numbers = re.match(r"(\d+)\.(\d+)", version)
    release = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if release < (2, 6):
        raise CheckpointError(
            f"torch {version} runs code from a file even with weights_only=True (CVE-2025-32434). "
            "Upgrade to torch 2.10 or newer, or have the weights saved as safetensors."
        )
    if release < (2, 10):
        warnings.warn(
            f"torch {version}: a hostile file can corrupt memory even with weights_only=True (CVE-2026-24747). "
            "Read only files you trust, or upgrade to torch 2.10 or newer.",
            stacklevel=2,
        )


def _check(path: Path) -> None:
    """Refuse an archive that holds more than a state dict, or less than it claims."""
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


def _blocked(path: Path, found: Pickle) -> list[str]:
    """Return what the pickle would import that ``weights_only`` does not allow."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # an instruction that torch does not know; it will say so itself
        return sorted(
            str(name) for name in found.globals if not str(name).startswith(("torch.", "collections."))
        )


def refusal_of(blocked: list[str]) -> str:
    """Return the error message for a pickle that would import ``blocked``."""
    return (
        f"refused, since reading it would import {listed(blocked)}. Ask for a file with the plain state dict "
        "(torch.save(model.state_dict(), ...), or safetensors). Names that you know to be harmless, such as "
        "argparse.Namespace, can be allowed with torch.serialization.add_safe_globals. trusted=True reads this "
        "file all the same and lets it run any program as you: only for a file that you made yourself."
    )


# What a torch pickle may ask for: tensors over the storages in its file, in plain containers.


def check_torch_pickle(found: Pickle, storage_bytes: Mapping[str, int]) -> None:
    """Refuse a pickle whose tensors exceed their storages, or that calls anything unrelated to tensors."""
    allowed = allowed_by_user()
    for value in _walk(found.value):
        if isinstance(value, Persistent):
            check_storage(value, storage_bytes)
        elif isinstance(value, Call):
            _check_call(value.function, value.arguments, allowed)


def check_storage(reference: Persistent, storage_bytes: Mapping[str, int]) -> None:
    """Refuse a reference to a storage that the file does not hold in full."""
    key, _ = key_of(reference)
    count, dtype = reference.key[4], storage_dtype(reference.key[1])
    held = storage_bytes.get(key, 0)
    if not isinstance(count, int) or not 0 <= count * dtype.itemsize <= held:
        raise CheckpointError(
            f"refused: storage {key!r} of {count!r} elements, of which there are {held:,} bytes"
        )


def key_of(reference: Persistent) -> tuple[str, tuple[Any, int, int] | None]:
    """Return the key of a storage, and the view of it as (key, offset, count), or ``None`` for all of it."""
    match reference.key:
        case (("storage" | b"storage"), Global(), str(key) | bytes(key), _, int()):
            view = None
        case (
            ("storage" | b"storage"),
            Global(),
            str(key) | bytes(key),
            _,
            int(),
            (None | (_, int(), int())) as view,
        ):
            pass
        case _:
            raise CheckpointError("refused: a reference to something that is not a storage")
    return str(key, "ascii") if isinstance(key, bytes) else key, view


def storage_dtype(kind: Any) -> torch.dtype:
    """Return the dtype of a storage class."""
    name = kind.name if isinstance(kind, Global) else ""
    if name not in STORAGE_DTYPES:
        raise CheckpointError(f"storages of class {kind} cannot be read; {_DEQUANTIZE}")
    return STORAGE_DTYPES[name]


def storages_in(value: Any) -> dict[str, torch.dtype]:
    """Return the dtype of every storage that a pickle refers to, by key."""
    references = [item for item in _walk(value) if isinstance(item, Persistent)]
    return {key_of(reference)[0]: storage_dtype(reference.key[1]) for reference in references}


def _check_call(function: Any, arguments: tuple[Any, ...], allowed: set[str]) -> None:
    name = str(function)
    if not isinstance(function, Global):
        raise CheckpointError("refused: the pickle calls something that is not a name")
    if name == _QUANTIZED:
        raise CheckpointError(f"it holds quantized tensors; {_DEQUANTIZE}")
    if name == _EMPTY:
        raise CheckpointError("it holds meta tensors, which have a shape and no values")
    if name == "torch._tensor._rebuild_from_type_v2" and len(arguments) > 2:
        _check_call(arguments[0], arguments[2], allowed)
    elif function.module == "torch._utils" and function.name in _REBUILD:
        check_view(arguments)
    elif name.endswith(".bytearray"):
        if any(isinstance(argument, int) for argument in arguments):
            raise CheckpointError("refused: the pickle asks for memory that it does not fill")
    elif name == "_codecs.encode":
        if arguments[1:] not in (("latin1",), ("latin-1",)):
            raise CheckpointError("refused: the pickle calls a codec that no pickle of weights needs")
    elif name not in _HARMLESS and name not in allowed and function.module != "torch._utils":
        raise CheckpointError(f"refused: the pickle calls {name}")


def check_view(arguments: tuple[Any, ...]) -> None:
    """Refuse a tensor with far more elements than its storage."""
    match arguments:
        case (Persistent(key=(_, _, _, _, int(count), *_)), int(), tuple(shape), tuple(), *_):
            if not all(isinstance(side, int) and side >= 0 for side in shape):
                raise CheckpointError(f"refused: a tensor of shape {shape}")
            if math.prod(shape) > max(count, _LARGEST_REPEAT):
                raise CheckpointError(
                    f"refused: a tensor of shape {shape} over a storage of {count:,} elements"
                )


def _walk(root: Any) -> Iterator[Any]:
    """Yield every value once."""
    seen: set[int] = set()
    pending = [root]
    while pending:
        value = pending.pop()
        if id(value) not in seen and isinstance(value, dict | list | tuple | Call | Persistent):
            seen.add(id(value))
            yield value
            pending += children_of(value)


def allowed_by_user() -> set[str]:
    """Return the names that the user has declared safe with ``torch.serialization.add_safe_globals``."""
    items = torch.serialization.get_safe_globals()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in items}
