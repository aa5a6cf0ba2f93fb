"""The handlers by name: those built in, those that a program registers, those of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from torch import Tensor

from transferkit.errors import ArgumentError, did_you_mean
from transferkit.layers import Layer

Handler = Callable[[Layer, Layer], Mapping[str, Tensor] | None]
"""What converts a source layer to fit a target layer: ``(source, target) -> tensors by short name, or None``."""

SomeHandler = TypeVar("SomeHandler", bound=Handler | type[Handler])

ENTRY_POINTS = "transferkit.handlers"

_HANDLERS: dict[str, Handler | type[Handler]] = {}


def register_handler(name: str) -> Callable[[SomeHandler], SomeHandler]:
    """Register a handler under a name, for ``WeightTransfer(handlers=[name])``.

    A handler is called with a source layer and a target layer, and returns the target layer's tensors by short
    name, or ``None`` where it does not apply. It must work on shapes alone: a plan calls it with tensors on the
    meta device. It returns a source tensor itself where it leaves that unchanged, and never writes to either.

    Two attributes are looked for. ``moves_states``: true where optimizer state is converted by the same steps as
    its parameter. ``join(sources, targets)``: returns the source's layers with some joined to one, which the handler
    is then called for.

    A package that wants its handler found without being imported names it in the entry-point group
    ``transferkit.handlers``.

    Args:
        name: Must be free.

    Returns:
        A decorator for a function ``(source, target) -> tensors | None``, or for a class whose instances are
        called so.

    Raises:
        ArgumentError: The name is taken.

    Example:
        >>> @register_handler("halve")
        ... def halve(source, target):
        ...     return {name: tensor / 2 for name, tensor in source.tensors.items()}
        >>> find_handler("halve") is halve
        True
        >>> unregister_handler("halve")
    """
    if name in _HANDLERS:
        raise ArgumentError(f"name must be one that no handler has yet, got {name!r}")

    def register(handler: SomeHandler) -> SomeHandler:
        _HANDLERS[name] = handler
        return handler

    return register


def unregister_handler(name: str) -> None:
    """Take a handler out of the registry.

    Raises:
        ArgumentError: There is none of that name.
    """
    if _HANDLERS.pop(name, None) is None:
        raise ArgumentError(f"no handler named {name!r} is registered{did_you_mean(name, _HANDLERS)}")


def find_handler(name: str) -> Handler:
    """Return the handler of a name, loading the entry point that has it where it is not registered yet.

    Raises:
        ArgumentError: There is none (the nearest names are offered), or it is a class that needs arguments.
    """
    if name not in _HANDLERS and name in _entry_points():
        _load(name)
    if name not in _HANDLERS:
        raise ArgumentError(f"no handler named {name!r}{did_you_mean(name, handler_names())}")
    handler = _HANDLERS[name]
    if not isinstance(handler, type):
        return handler
    if needed := _needed_arguments(handler):
        raise ArgumentError(
            f"handler {name!r} needs arguments; give {handler.__name__}({'=..., '.join(needed)}=...) in its place"
        )
    made: Handler = handler()
    return made


def handler_names() -> tuple[str, ...]:
    """Return the names of all handlers in the order of registration, then those of installed packages."""
    return tuple(dict.fromkeys([*_HANDLERS, *_entry_points()]))


def automatic_handlers() -> dict[str, Handler]:
    """Return the handlers that work without arguments, ``"slices"`` last: it fits most and knows least."""
    names = sorted(handler_names(), key=lambda name: name == "slices")
    for name in names:
        if name not in _HANDLERS:
            _load(name)
    return {name: find_handler(name) for name in names if not _needed_arguments(_HANDLERS[name])}


def _needed_arguments(handler: Handler | type[Handler]) -> list[str]:
    if not isinstance(handler, type):
        return []
    parameters = inspect.signature(handler).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load(name: str) -> None:
    """Load an entry point; its module may register the handler itself, or it is the handler."""
    try:
        loaded = _entry_points()[name].load()
    except Exception as error:
        point = _entry_points()[name].value
        raise ArgumentError(f"handler {name!r} ({point}) cannot be loaded: {error}") from error
    if name not in _HANDLERS:
        register_handler(name)(loaded)
