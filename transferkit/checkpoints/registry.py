"""The formats that can be read, and how another package adds one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.unknown import what_it_is
from transferkit.errors import ArgumentError, CheckpointError, did_you_mean

ReaderFunction = Callable[[Path, ReadOptions], Contents]
ContentTest = Callable[[Path, bytes], bool]

HEAD_BYTES = 4096
ENTRY_POINTS = "transferkit.readers"


@dataclass(frozen=True)
class Format:
    """A file format: how it is recognised and what reads it."""

    name: str
    read: ReaderFunction
    matches: ContentTest | None
    suffixes: tuple[str, ...]


_FORMATS: dict[str, Format] = {}


def register_reader(
    name: str, *, matches: ContentTest | None = None, suffixes: tuple[str, ...] = ()
) -> Callable[[ReaderFunction], ReaderFunction]:
    """Add a file format: decorate the function that reads it.

    A package that wants to be found without being imported names the module that holds the decorated function
    in the entry-point group ``transferkit.readers``.

    Args:
        name: What the format is called, also in ``read_checkpoint(format=name)``.
        matches: Told the path and the first 4096 bytes (none for a folder), says whether a file has the format.
        suffixes: Endings such as ``".h5"``, asked where no format recognises the content.

    Raises:
        ArgumentError: The name is taken, or neither ``matches`` nor ``suffixes`` is given.

    Example:
        >>> @register_reader("one number", suffixes=(".num",))
        ... def read_number(path, options):
        ...     return Contents({"value": torch.tensor(float(path.read_text()))})
        >>> unregister_reader("one number")
    """
    if name in _FORMATS:
        raise ArgumentError(f"name must be one that no reader has yet, got {name!r}")
    if matches is None and not suffixes:
        raise ArgumentError(f"reader {name!r} needs matches or suffixes, or it would never be asked")

    def register(read: ReaderFunction) -> ReaderFunction:
        _FORMATS[name] = Format(name, read, matches, tuple(suffix.lower() for suffix in suffixes))
        return read

    return register


def unregister_reader(name: str) -> None:
    """Take a format out again.

    Raises:
        ArgumentError: No reader has this name.
    """
    if _FORMATS.pop(name, None) is None:
        raise ArgumentError(f"no reader is called {name!r}{did_you_mean(name, _FORMATS)}")


def format_named(name: str) -> Format:
    """Return a format by name.

    Raises:
        ArgumentError: No reader has this name.
    """
    _load_entry_points()
    if name not in _FORMATS:
        raise ArgumentError(f"format must be one of {', '.join(_FORMATS)}, got {name!r}")
    return _FORMATS[name]


def find_format(path: Path) -> Format:
    """Return the format of a file or folder, told by its content and only then by its suffix.

    Raises:
        CheckpointError: No format fits.
    """
    _load_entry_points()
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    for form in _FORMATS.values():
        if form.matches is not None and form.matches(path, head):
            return form
    for form in _FORMATS.values():
        if path.name.lower().endswith(form.suffixes):
            return form
    raise CheckpointError(
        what_it_is(path, head)
        or f"no known format has such content (it begins with {head[:8]!r}). Known are: {', '.join(_FORMATS)}. "
        "transferkit.register_reader adds another"
    )


@cache
def _load_entry_points() -> None:
    """Import every plug-in once; one that fails is reported and does not keep the others from working."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            warnings.warn(
                f"the reader {entry.name!r} ({entry.value}) could not be loaded: {error}", stacklevel=2
            )
