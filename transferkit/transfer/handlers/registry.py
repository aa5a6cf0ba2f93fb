"""The handlers by name: those built in, those that a program registers, those of installed packages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from transferkit.errors import ArgumentError, did_you_mean
from transferkit.layers import Layer
from transferkit.registry import Registry

Handler = Callable[[Layer, Layer], Mapping[str, Tensor] | None]
"""What converts a source layer to fit a target layer: ``(source, target) -> tensors by short name, or None``."""

SomeHandler = TypeVar("SomeHandler", bound=Handler | type[Handler])

_HANDLERS: Registry[Handler | type[Handler]] = Registry("handler")

# The order in which handlers are tried where nobody names one: what keeps every value before what makes some up, and
# one dtype, kernel or layout before the next. Handlers of other packages come before the last, which fits most.
_AUTOMATIC = (
    "parametrizations",
    "fold_batch_norm",
    "cast",
    "fused",
    "tokens",
    "reshape",
    "inflate_kernel",
    "input_channels",
    "resize_kernel",
    "position_embeddings",
)
_LAST_RESORT = "slices"


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
    _HANDLERS.require_free(name)

    def register(handler: SomeHandler) -> SomeHandler:
        _HANDLERS.add(name, handler)
        return handler

    return register


def unregister_handler(name: str) -> None:
    """Take a handler out of the registry.

    Raises:
        ArgumentError: There is none of that name.
    """
    _HANDLERS.remove(name)


def find_handler(name: str) -> Handler:
    """Return the handler of a name, loading the entry point that has it where it is not registered yet.

    Raises:
        ArgumentError: There is none (the nearest names are offered), or it is a class that needs arguments.
    """
    if name not in _HANDLERS and name in _HANDLERS.announced:
        _HANDLERS.load(name)
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
    return _HANDLERS.names()


def automatic_handlers() -> dict[str, Handler]:
    """Return the handlers that work without arguments, in the order in which they are tried."""
    others = sorted(set(handler_names()) - {*_AUTOMATIC, _LAST_RESORT})
    for name in others:
        if name not in _HANDLERS:
            _HANDLERS.load(name)
    names = (*_AUTOMATIC, *others, _LAST_RESORT)
    return {name: find_handler(name) for name in names if not _needed_arguments(_HANDLERS[name])}


def _needed_arguments(handler: Handler | type[Handler]) -> list[str]:
    if not isinstance(handler, type):
        return []
    parameters = inspect.signature(handler).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]
