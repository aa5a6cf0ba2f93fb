"""One source layer on its way into one target layer: whether it fits, which handler converts it, how it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from transferkit.errors import ArgumentError, HandlerError, TransferError
from transferkit.layers import Layer
from transferkit.memory import not_plain
from transferkit.transfer._target import Target
from transferkit.transfer.handlers import Handler, automatic_handlers, find_handler
from transferkit.transfer.select import Rule, by_name, select_layers


def why_not(value: Tensor, target: Tensor) -> str:
    """Say why a tensor cannot be written into another as it is, or return an empty string.

    Between floating dtypes, and between complex ones, a tensor is cast as it is written.

    Example:
        >>> import torch
        >>> why_not(torch.zeros(2), torch.zeros(3)), why_not(torch.zeros(2), torch.zeros(2).half())
        ('another shape', '')
    """
    if what := not_plain(target):
        return f"the target's is a {what}: transfer before the model is quantized, sharded or made sparse"
    if what := not_plain(value):
        return f"the source's is a {what}: make it plain first, with dequantize(), full_tensor() or to_dense()"
    if value.shape != target.shape:
        return "another shape"
    alike = (value.is_floating_point(), value.is_complex()) == (target.is_floating_point(), target.is_complex())
    whole = not (value.is_floating_point() or value.is_complex())
    return "" if value.dtype == target.dtype or (alike and not whole) else "another kind of number"


def may_stay(layer: Layer, short: str) -> str:
    """Say why one of a target layer's tensors needs no source, or return an empty string."""
    # Batch norm looks at its batch counter only where it averages without momentum; many files have none.
    if short == "num_batches_tracked" and getattr(layer.module, "momentum", None) is not None:
        return "a counter that is used only without momentum"
    return ""


def fills(layer: Layer, values: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors fill a target layer as they are."""
    return all(
        not why_not(values[short], tensor) if short in values else bool(may_stay(layer, short))
        for short, tensor in layer.tensors.items()
    )


# One source layer on its way into one target layer: tried on shapes to plan it, run on values to apply it.


@dataclass(frozen=True)
class Preview:
    """What a conversion would make.

    Attributes:
        values: Tensors for the target by short name, of which only shape and dtype count.
        kept: Names of those that are the source's own, unchanged.
    """

    values: Mapping[str, Tensor]
    kept: frozenset[str]


@dataclass(frozen=True)
class Conversion:
    """A source layer, a target layer, and what converts the one into the other.

    Attributes:
        source: The source layer.
        target: The target layer.
        handler: Converts; ``None`` to take the source's tensors as they are.
        name: What the handler is called.
    """

    source: Layer
    target: Layer
    handler: Handler | None = None
    name: str = ""

    def values(self) -> Mapping[str, Tensor] | None:
        """Return the tensors for the target, by short name, or ``None`` where the handler does not apply.

        Raises:
            HandlerError: The handler raised, or made what the target does not have or what does not fit it.
        """
        if self.handler is None:
            return {
                short: tensor for short, tensor in self.source.tensors.items() if short in self.target.tensors
            }
        try:
            with torch.no_grad():
                made = self.handler(self.source, self.target)
        except Exception as error:
            raise HandlerError(f"{self._place} raised {type(error).__name__}: {error}") from error
        if made is None:
            return None
        problems = list(self._problems(made))
        if problems:
            raise HandlerError(f"{self._place} returned {', '.join(problems)}")
        return {short: value for short, value in made.items() if short in self.target.tensors}

    def _problems(self, made: object) -> Iterator[str]:
        """Say what is wrong with a handler's result. A source tensor left as it is may fit or not, as in a copy."""
        if not isinstance(made, Mapping):
            yield f"a {type(made).__name__}; it must return tensors by name, or None where it does not apply"
            return
        shapes = self.target.shapes
        for short, value in made.items():
            if not isinstance(value, Tensor):
                yield f"{value!r} for {short}"
            elif value is not self.source.tensors.get(short) and shapes.get(short) != tuple(value.shape):
                wanted = list(shapes[short]) if short in shapes else "none"
                yield f"{short} {list(value.shape)} where the target has {wanted}"

    def preview(self) -> Preview | None:
        """Return what the conversion would make, from shapes alone; ``None`` where it does not apply."""
        source, target = _shapes_only(self.source), _shapes_only(self.target)
        values = replace(self, source=source, target=target).values()
        if values is None:
            return None
        kept = {short for short, value in values.items() if value is source.tensors.get(short)}
        return Preview(values, frozenset(kept))

    @property
    def _place(self) -> str:
        return f"handler {self.name} from {self.source.name!r} to {self.target.name!r}"


def _shapes_only(layer: Layer) -> Layer:
    """Return a layer whose plain tensors have no values."""
    return replace(
        layer,
        tensors={
            short: tensor if not_plain(tensor) else tensor.detach().to("meta")
            for short, tensor in layer.tensors.items()
        },
    )


def _all_plain(*layers: Layer) -> bool:
    return not any(not_plain(tensor) for layer in layers for tensor in layer.tensors.values())


# Which handler converts which layer: where it is aimed, or where a layer does not fit as it is.

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
            automatic = {n: h for n, h in automatic_handlers().items() if n not in self._tried}
            self._tried = {**self._tried, **automatic}

    def join(self, sources: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers, some joined to one by the handlers that do so."""
        layers = sources
        for name, handler in {**self._handlers, **self._tried}.items():
            if hasattr(handler, "join"):
                before = {id(layer) for layer in layers}
                layers = handler.join(layers, self._target.layers)
                self._joined |= {id(layer): name for layer in layers if id(layer) not in before}
                self._handlers.setdefault(name, handler)
        return list(layers)

    def __call__(self, source: Layer, target: Layer) -> Conversion:
        """Return the conversion that must be, else the plain copy where it fits, else the first that fits."""
        must = self._joined.get(id(source)) or self._aimed.get(target.index)
        if must is not None:
            return self._certain(source, target, str(must))
        plain = Conversion(source, target)
        if fills(target, source.tensors) or not _all_plain(source, target):
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
            if not _all_plain(source, target):
                return
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
        return preview is not None and fills(conversion.target, preview.values)

    def _add(self, named: Named) -> str:
        """Register a handler for this transfer and return the name that reports call it by."""
        if isinstance(named, str):
            name, handler = named, find_handler(named)
        elif callable(named):
            name, handler = getattr(named, "__name__", None) or repr(named), named
        else:
            raise ArgumentError(f"a handler must be a name or a callable (source, target), got {named!r}")
        if self._handlers.get(name, handler) is not handler:  # another one of that name
            name = next(f"{name} ({n})" for n in count(2) if f"{name} ({n})" not in self._handlers)
        self._handlers[name] = handler
        return name
