"""The registry of file formats: what a reader receives and returns, and how another package adds one."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from transferkit.checkpoints._protobuf import message_in
from transferkit.errors import ArgumentError, CheckpointError, harmless
from transferkit.registry import Registry

States = Mapping[str, Mapping[str, Any]]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ReadOptions:
    """The options of ``read_checkpoint`` that concern a reader.

    Attributes:
        key: Dotted path of the state dict to take, ``"model_ema"`` or ``"state.model"``; ``None`` finds it.
        trusted: Whether code from the file may run.
        fold_dropout: Whether neon's weights are scaled so that a torch model computes the same function.
        depth: How many archives lie around the file.
    """

    key: str | None = None
    trusted: bool = False
    fold_dropout: bool = True
    depth: int = 0


@dataclass(frozen=True, eq=False)
class Contents:
    """What a reader found in a file, before it is grouped into layers.

    Attributes:
        tensors: Tensors by full key (``"features.0.weight"``), in definition order.
        states: Optimizer state by the same full key, then by state name.
        notes: Decisions of the reader that a user should know, one sentence each.
        metadata: Plain values found beside the tensors (``"epoch"``, ``"neon_version"``).
        raw_index: Each layer's number in the file's own count, where the file has one.
        format: Name of the format, where the reader serves more than one.
        files: The files that were read, where that is not just the file asked for.
        paths: Each layer's name in the file, by layer name, where a wrapper put something into it.
        ordered: Whether the tensors stand in definition order; ``False`` where the format does not keep it.
        kinds: Each layer's kind (see :class:`~transferkit.layers.Layer`), by layer name, where the file tells it.
        attributes: What the file says of each layer beside its tensors (epsilon, stride, padding, groups, activation,
            data format), as plain values by layer name.
        layout: ``"torch"``; else the format whose names and axes the tensors still have, because it does not tell
            layers' kinds: the plan of a transfer converts them by the kind of the target module.
    """

    tensors: Mapping[str, Tensor]
    states: States = field(default_factory=lambda: _NOTHING)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    raw_index: Mapping[str, int] = field(default_factory=lambda: _NOTHING)
    format: str = ""
    files: tuple[Path, ...] = ()
    paths: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    ordered: bool = True
    kinds: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NOTHING)
    layout: str = "torch"


ReaderFunction = Callable[[Path, ReadOptions], Contents]
ContentTest = Callable[[Path, bytes], bool]


@dataclass(frozen=True)
class Format:
    """A file format: how it is recognized and what reads it."""

    name: str
    read: ReaderFunction
    matches: ContentTest | None
    suffixes: tuple[str, ...]


HEAD_BYTES = 4096
_AROUND_OTHERS = ("compressed", "tar", "zip")  # asked last, since many formats are archives of their own
_FORMATS: Registry[Format] = Registry("reader")


def register_reader(
    name: str, *, matches: ContentTest | None = None, suffixes: tuple[str, ...] = ()
) -> Callable[[ReaderFunction], ReaderFunction]:
    """Add a file format: decorate the function that reads it.

    A package that wants to be found without being imported names the module that holds the decorated function
    in the entry-point group ``transferkit.readers``.

    Args:
        name: What the format is called, also in ``read_checkpoint(format=name)``.
        matches: Called with the path and the first 4096 bytes (none for a folder); returns whether the file has
            this format.
        suffixes: Endings such as ``".h5"``, used where no format recognizes the content.

    Raises:
        ArgumentError: The name is taken, or neither ``matches`` nor ``suffixes`` is given.

    Example:
        >>> @register_reader("one number", suffixes=(".num",))
        ... def read_number(path, options):
        ...     return Contents({"value": torch.tensor(float(path.read_text()))})
        >>> unregister_reader("one number")
    """
    _FORMATS.require_free(name)
    if matches is None and not suffixes:
        raise ArgumentError(f"reader {name!r} needs matches or suffixes, or it would never be asked")

    def register(read: ReaderFunction) -> ReaderFunction:
        _FORMATS.add(name, Format(name, read, matches, tuple(suffix.lower() for suffix in suffixes)))
        return read

    return register


def unregister_reader(name: str) -> None:
    """Remove a format from the registry.

    Raises:
        ArgumentError: No reader has this name.
    """
    _FORMATS.remove(name)


def format_named(name: str) -> Format:
    """Return a format by name.

    Raises:
        ArgumentError: No reader has this name.
    """
    _FORMATS.load_all()
    if name not in _FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(_FORMATS)}, got {name!r}")
    return _FORMATS[name]


def find_format(path: Path) -> Format:
    """Return the format of a file or folder, by its content and only then by its suffix.

    Raises:
        CheckpointError: No format fits.
    """
    _FORMATS.load_all()
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    forms = sorted(map(_FORMATS.__getitem__, _FORMATS), key=lambda form: form.name in _AROUND_OTHERS)
    for form in forms:
        if form.matches is not None and form.matches(path, head):
            return form
    known = what_it_is(path, head)
    for form in forms:
        if not known and path.name.lower().endswith(form.suffixes):
            return form
    raise CheckpointError(
        known
        or _SUFFIXES.get(path.suffix.lower())
        or f"no known format has such content (it begins with {head[:8]!r}). Known are: {', '.join(_FORMATS)}. "
        "transferkit.register_reader adds another"
    )


_LONGEST_MESSAGE = 4000  # characters; a file can hold names of any length


def why_not_read(error: Exception) -> str:
    """Say why a file was not read: refused as unsafe or damaged, or for want of memory, which says nothing of it."""
    if _lacks_memory(error):
        return (
            "there is not enough memory to read it; a limit on the process (ulimit -v, a container's) counts what is "
            "mapped too"
        )
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    known = isinstance(error, CheckpointError)
    words = harmless(str(error) if known else f"damaged, or not what it seems: {error!r}")
    return (
        words
        if len(words) <= _LONGEST_MESSAGE
        else f"{words[:_LONGEST_MESSAGE]} ... ({len(words):,} characters)"
    )


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is a lack of memory; some libraries tell so in words only."""
    if error is None:
        return False
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    told = not isinstance(error, CheckpointError) and re.search(_NO_MEMORY, str(error)[:_LONGEST_MESSAGE])
    return bool(told) or _lacks_memory(error.__cause__ or error.__context__)


_NO_MEMORY = r"[Cc]annot allocate memory|can't allocate memory|[Nn]ot enough memory|os error 12\b"

# Files that are mistaken for weights, each with what to do about it.


_LUA = "a file of Torch for Lua: load it with torchfile (PyPI) and save the arrays with numpy.savez"
_DARKNET = (
    "weights of Darknet, whose layers only the .cfg tells: load both with the network's code in PyTorch and save its "
    "state dict"
)

# How a file begins, what it is, and what to do.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself: run `git lfs pull` in its repository",
    ),
    (b"<!doctype html", "a web page, as a failed download leaves it: download the file again"),
    (b"<html", "a web page, as a failed download leaves it: download the file again"),
    (b"<?xml", "an XML file, as a failed download leaves it: download the file again"),
    (b"gguf", "a GGUF file with packed weights: read the original weights that it was made from"),
    (b"ggml", "a GGML file with packed weights: read the original weights that it was made from"),
    (
        b"\x12\x01\0\0\0\0\0\0",
        "MXNet's parameters: load them with MXNet and save the arrays: "
        "numpy.savez('new.npz', **{name: array.asnumpy() for name, array in mxnet.nd.load(path).items()})",
    ),
    (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0v 1", _LUA),
    (b"\x03\0\0\0\x01\0\0\0", _LUA),
    (b"4\n1\n3\nv 1", _LUA),
    (
        b"model_checkpoint_path:",
        "TensorFlow's note of its newest checkpoint: read the .index that it names, beside it",
    ),
    (b"bzh", "a bzip2 archive: unpack it and read what is inside"),
    (b"\xfd7zxz", "an xz archive: unpack it and read what is inside"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and read what is inside"),
    (b"rar!", "a rar archive: unpack it and read what is inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it and read what is inside"),
)

_SUFFIXES = {
    ".pb": "a TensorFlow graph: read the checkpoint or SavedModel that it was frozen from",
    ".meta": "a TensorFlow graph: its weights are in the checkpoint beside it, whose .index is to be read",
    ".tflite": "a TensorFlow Lite model with packed weights: read the original weights",
    ".mat": "a MATLAB file: load it with scipy.io and save the arrays with numpy.savez",
}


def what_it_is(path: Path, head: bytes) -> str:
    """Return what a file that no reader knows seems to be, and what to do about it."""
    if path.is_file() and not head:
        return "the file is empty"
    start = head[:64].lstrip().lower()
    for beginning, meaning in _BEGINNINGS:
        if start.startswith(beginning):
            return meaning
    if head[4:8] == b"TFL3":
        return _SUFFIXES[".tflite"]
    if head[:4] == bytes(4) and head[4:12:4] in (b"\1\0", b"\2\0", b"\2\5") and head[5:8] == bytes(3):
        return _DARKNET
    if head[:16] == bytes(16) and head[20:21] == b"\x08":
        return "parameters of Paddle: convert the model to ONNX with paddle2onnx and read that"
    if head.startswith(b"PK"):
        return "a damaged zip archive: copy or download the file again"
    return _message(path)


def _message(path: Path) -> str:
    """Return what a protocol buffer that no reader knows seems to be."""
    found = message_in(path) if path.is_file() else None
    if found is None:
        return ""
    if isinstance(found.fields.get(1, [b""])[0], int) and 2 in found and max(found.fields) >= 200:
        return "a Core ML model: read the model that it was converted from"
    return _SUFFIXES[".pb"] if found.fields.keys() <= {1, 2, 3, 4} and len(found.fields.get(1, ())) > 1 else ""
