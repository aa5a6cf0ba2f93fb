"""Which handler converts which layer: where it is aimed, or where a layer does not fit as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from transferkit.errors import ArgumentError, HandlerError, TransferError
from transferkit.layers import Layer
from transferkit.transfer.conversion import Conversion
from transferkit.transfer.decide import fills
from transferkit.transfer.handlers import Handler, find_handler, handler_names
from transferkit.transfer.select import Rule, by_name, select_layers

Named = str | Handler
Handlers = Sequence[Named] | Mapping[str | re.Pattern[str] | Rule, Named]


class Chooser:
    """Chooses the conversion for a source layer and a target layer.

    Args:
        handlers: A sequence of handlers (or their names), tried in turn on layers that do not fit as they are;
            or a mapping from a glob, regular expression or rule on the target's layers to the handler that
            converts exactly those, also where they would fit.
        on_mismatch: ``"error"`` for these alone; ``"adapt"`` to try every registered handler after them.
        layers: The target's layers.
        derived: Keys of the target's non-persistent buffers.

    Raises:
        ArgumentError: An unknown handler or ``on_mismatch``.
        SelectionError: A rule that a handler is aimed by matches nothing.
    """

    def __init__(
        self, handlers: Handlers, on_mismatch: str, layers: Sequence[Layer], derived: frozenset[str]
    ) -> None:
        if on_mismatch not in ("error", "adapt"):
            raise ArgumentError(f"on_mismatch must be 'error' or 'adapt', got {on_mismatch!r}")
        if isinstance(handlers, str) or callable(handlers):
            handlers = [handlers]
        self._derived = derived
        self._aimed: dict[int, tuple[str, Handler]] = {}
        self._tried: list[tuple[str, Handler]] = []
        if isinstance(handlers, Mapping):
            for rule, named in handlers.items():
                rule = rule if isinstance(rule, Rule) else by_name(rule)
                handler = _named(named)
                self._aimed |= {layers[place].index: handler for place in select_layers(rule, layers).indices}
        else:
            self._tried = [_named(named) for named in handlers]
        self._must_run = {name for name, _ in [*self._tried, *self._aimed.values()]}
        if on_mismatch == "adapt":
            self._tried += [(name, find_handler(name)) for name in handler_names()]
        self._ran: set[str] = set()

    def __call__(self, source: Layer, target: Layer) -> Conversion:
        """Return the aimed conversion, else the plain copy where it fits, else the first handler that fits."""
        if target.index in self._aimed:
            name, handler = self._aimed[target.index]
            aimed = Conversion(source, target, handler, name)
            if aimed.preview() is None:
                raise HandlerError(f"handler {name} is aimed at {target!r} and does not apply to {source!r}")
            self._ran.add(name)
            return aimed
        plain = Conversion(source, target)
        if fills(target, source.tensors, self._derived):
            return plain
        for name, handler in self._tried:
            attempt = Conversion(source, target, handler, name)
            preview = attempt.preview()
            if preview is not None and fills(target, preview.values, self._derived):
                self._ran.add(name)
                return attempt
        return plain

    def check_all_ran(self) -> None:
        """Raise if a handler was named and had nothing to do, since its author thought otherwise.

        Raises:
            TransferError: With how to aim it.
        """
        idle = sorted(self._must_run - self._ran)
        if idle:
            raise TransferError(
                f"these handlers had nothing to convert: {', '.join(idle)}. A handler in a sequence is tried "
                "only on layers that do not fit as they are; aim it at others, handlers={'LAYER': handler}"
            )


def _named(named: Named) -> tuple[str, Handler]:
    if isinstance(named, str):
        return named, find_handler(named)
    if not callable(named):
        raise ArgumentError(f"a handler must be a name or a callable (source, target), got {named!r}")
    return getattr(named, "__name__", None) or repr(named), named
