"""Which handler converts which layer: where it is aimed, or where a layer does not fit as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from transferkit.errors import ArgumentError, HandlerError, TransferError
from transferkit.layers import Layer
from transferkit.transfer.conversion import Conversion
from transferkit.transfer.fit import fills
from transferkit.transfer.handlers import Handler, automatic_handlers, find_handler
from transferkit.transfer.rules import by_name
from transferkit.transfer.select import Rule, select_layers
from transferkit.transfer.target import Target

Named = str | Handler
Handlers = Named | Sequence[Named] | Mapping[str | re.Pattern[str] | Rule, Named]


class Chooser:
    """Chooses the conversion for a source layer and a target layer.

    Args:
        handlers: A sequence of handlers (or their names), tried in turn on layers that do not fit as they are;
            or a mapping from a glob, regular expression or rule on the target's layers to the handler that
            converts exactly those, also where they would fit.
        on_mismatch: ``"error"`` for these alone; ``"adapt"`` to try every handler that needs no arguments after
            them.
        target: The model.

    Raises:
        ArgumentError: An unknown handler or ``on_mismatch``.
        SelectionError: A rule that a handler is aimed by matches nothing.
    """

    def __init__(self, handlers: Handlers, on_mismatch: str, target: Target) -> None:
        if on_mismatch not in ("error", "adapt"):
            raise ArgumentError(f"on_mismatch must be 'error' or 'adapt', got {on_mismatch!r}")
        self._target = target
        self._aimed: dict[int, Named] = {}
        self._tried: dict[str, Handler] = {}
        self._joined: dict[int, str] = {}
        self._ran: set[str] = set()
        self._handlers: dict[str, Handler] = {}
        if isinstance(handlers, Mapping):
            for where, named in handlers.items():
                rule = where if isinstance(where, Rule) else by_name(where)
                name = self._add(named)
                self._aimed |= dict.fromkeys(select_layers(rule, target.layers).indices, name)
        else:
            several = [handlers] if isinstance(handlers, str) or callable(handlers) else handlers
            names = [self._add(named) for named in several]
            self._tried = {name: self._handlers[name] for name in names}
        self._must_run = tuple(self._handlers)
        if on_mismatch == "adapt":
            self._tried = {**automatic_handlers(), **self._tried}

    def join(self, sources: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers, some joined to one by the handlers that do so."""
        layers = list(sources)
        for name, handler in {**self._handlers, **self._tried}.items():
            if hasattr(handler, "join"):
                before = {id(layer) for layer in layers}
                layers = handler.join(layers, self._target.layers)
                self._joined |= {id(layer): name for layer in layers if id(layer) not in before}
                self._handlers.setdefault(name, handler)
        return layers

    def __call__(self, source: Layer, target: Layer) -> Conversion:
        """Return the conversion that must be, else the plain copy where it fits, else the first that fits."""
        must = self._joined.get(id(source)) or self._aimed.get(target.index)
        if must is not None:
            return self._certain(source, target, str(must))
        plain = Conversion(source, target)
        if fills(target, source.tensors, self._target.derived):
            return plain
        for name, handler in self._tried.items():
            attempt = Conversion(source, target, handler, name)
            if self._fits(attempt):
                self._ran.add(name)
                return attempt
        return plain

    def would_fit(self, source: Layer, target: Layer) -> Iterator[str]:
        """Yield the names of the handlers that would make a source layer fit, for advice.

        Slices are no advice: they fit most, and make nonsense of a classification layer.
        """
        for name, handler in automatic_handlers().items():
            try:
                if name != "slices" and self._fits(Conversion(source, target, handler, name)):
                    yield name
            except (HandlerError, ArgumentError):
                continue

    def check_all_ran(self) -> None:
        """Raise if a handler was named and had nothing to do, since its author thought otherwise.

        Raises:
            TransferError: With how to aim it.
        """
        idle = [name for name in self._must_run if name not in self._ran]
        if idle:
            raise TransferError(
                f"these handlers had nothing to convert: {', '.join(idle)}. A handler in a sequence is tried only "
                "on layers that do not fit as they are; aim it at others with handlers={'LAYER NAME': handler}"
            )

    def _certain(self, source: Layer, target: Layer, name: str) -> Conversion:
        conversion = Conversion(source, target, self._handlers[name], name)
        if conversion.preview() is None:
            raise HandlerError(f"handler {name} is aimed at {target!r} and does not apply to {source!r}")
        self._ran.add(name)
        return conversion

    def _fits(self, conversion: Conversion) -> bool:
        preview = conversion.preview()
        return preview is not None and fills(conversion.target, preview.values, self._target.derived)

    def _add(self, named: Named) -> str:
        """Register a handler for this transfer and return the name that reports call it by."""
        if isinstance(named, str):
            name, handler = named, find_handler(named)
        elif callable(named):
            name, handler = getattr(named, "__name__", None) or repr(named), named
        else:
            raise ArgumentError(f"a handler must be a name or a callable (source, target), got {named!r}")
        self._handlers[name] = handler
        return name
