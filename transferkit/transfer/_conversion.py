"""One source layer on its way into one target layer: whether it fits, which handler converts it, how it is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import torch
from torch import Tensor, nn

from transferkit.errors import ArgumentError, HandlerError, TransferError, TransferKitError
from transferkit.layers import Layer
from transferkit.memory import not_plain
from transferkit.transfer._shards import is_distributed, why_no_part, with_wholes
from transferkit.transfer._target import Target
from transferkit.transfer._turns import Turn, joined, turn_for
from transferkit.transfer.handlers import Handler, automatic_handlers, find_handler
from transferkit.transfer.handlers.plain import UNASKED, WAY_OUT, Scales
from transferkit.transfer.parts import Composed, compose, plain, settle_layouts
from transferkit.transfer.select import Rule, by_name, select_layers


def why_not(value: Tensor, target: Tensor) -> str:
    """Say why a tensor cannot be written into another as it is, or return an empty string.

    Between floating dtypes, and between complex ones, a tensor is cast as it is written.

    Example:
        >>> import torch
        >>> why_not(torch.zeros(2), torch.zeros(3)), why_not(torch.zeros(2), torch.zeros(2).half())
        ('another shape', '')
    """
    if is_distributed(target):
        if why := why_no_part(target):
            return why
    elif what := not_plain(target):
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
    if layer.attributes.get("adapter"):
        return "an adapter's own, which the network inside it has not"
    return ""


Naming = Callable[[Layer, str], str]
"""Names the rule by which one of a target layer's tensors is excused, or returns an empty string."""


@dataclass(frozen=True)
class Excuses:
    """What the caller excuses a target tensor from, by rules on its key.

    Attributes:
        keep: Names the rule by which a tensor stays as it is, also where the source has one for it.
        allow: Names the rule by which the source may have none.
    """

    keep: Naming = lambda layer, short: ""
    allow: Naming = lambda layer, short: ""


def unfilled(layer: Layer, values: Mapping[str, Tensor], excuses: Excuses) -> list[str]:
    """Return the tensors of a target layer that values neither fill as they are nor may leave as they are."""
    return [
        short
        for short, tensor in layer.tensors.items()
        if not excuses.keep(layer, short)
        and (
            why_not(values[short], tensor)
            if short in values
            else not (may_stay(layer, short) or excuses.allow(layer, short))
        )
    ]


# One source layer on its way into one target layer: tried on shapes to plan it, run on values to apply it.


@dataclass(frozen=True)
class Preview:
    """What a conversion would make.

    Attributes:
        values: Tensors for the target by short name, of which only shape and dtype count.
        kept: Names of those that are the source's own, unchanged.
        source: The layer that it was made of.
    """

    values: Mapping[str, Tensor]
    kept: frozenset[str]
    source: Layer | None = None


@dataclass(frozen=True)
class Conversion:
    """A source layer, a target layer, and what converts the one into the other.

    Attributes:
        source: The source layer.
        target: The target layer.
        handler: Converts; ``None`` to take the source's tensors as they are.
        name: What the handler is called.
        preview: What it makes of the shapes alone; ``None`` where it does not apply, or was not tried yet.
        codes: Why tensors of the source, by short name, are no values.
        turn: What puts the source into torch's conventions first, where its file has others.
    """

    source: Layer
    target: Layer
    handler: Handler | None = None
    name: str = ""
    preview: Preview | None = None
    codes: Mapping[str, str] = field(default_factory=dict)
    turn: Turn | None = None

    def values(self) -> Mapping[str, Tensor] | None:
        """Return the tensors for the target, by short name, or ``None`` where the handler does not apply.

        Raises:
            HandlerError: The handler raised, made what the target does not have or what does not fit it, or less
                than of shapes alone.
        """
        if isinstance(self.source, Composed):
            return self.assembled().values()
        with _plain_math(self.source, self.target):
            source = self.turn(self.source) if self.turn else self.source
        if self.handler is None:
            return {short: value for short, value in source.tensors.items() if short in self.target.tensors}
        try:
            with _plain_math(source, self.target):
                made = self.handler(source, with_wholes(self.target))
        except TransferKitError as error:
            raise HandlerError(f"{self._place}: {error}") from error
        except Exception as error:
            raise HandlerError(f"{self._place} raised {type(error).__name__}: {error}") from error
        problems = list(self._problems(made, source))
        if problems:
            raise HandlerError(f"{self._place} returned {', '.join(problems)}")
        return None if made is None else {short: made[short] for short in made if short in self.target.tensors}

    def assembled(self) -> Conversion:
        """Return the conversion with a source layer that has its values, where it is put together from others."""
        return replace(self, source=self.source.assembled()) if isinstance(self.source, Composed) else self

    @property
    def told(self) -> str:
        """What the report says converted the layer."""
        how = self.source.how if isinstance(self.source, Composed) else ""
        return ", ".join(filter(None, (how, self.by)))

    def _problems(self, made: object, source: Layer) -> Iterator[str]:
        """Say what is wrong with a handler's result. A source tensor left as it is may fit or not, as in a copy."""
        if made is not None and not isinstance(made, Mapping):
            yield f"a {type(made).__name__}; it must return tensors by name, or None where it does not apply"
            return
        for short, value in (made or {}).items():
            if not isinstance(value, Tensor):
                yield f"{value!r} for {short}"
            elif value is not source.tensors.get(short):
                yield from self._misfits(short, value)
        promised = self.preview.values if self.preview and self.preview.source is self.source else ()
        yield from (
            f"no {short}, which it did of shapes alone" for short in promised if short not in (made or ())
        )

    def _misfits(self, short: str, value: Tensor) -> Iterator[str]:
        """Say how a tensor that the handler made does not fit the target."""
        own = self.target.tensors.get(short)
        if own is None or own.shape != value.shape:
            wanted = "none" if own is None else list(own.shape)
            yield f"{short} {list(value.shape)} where the target has {wanted}"
        elif why_not(value, own):
            yield f"{short} {value.dtype} where the target has {own.dtype}"

    def previewed(self) -> Conversion:
        """Return the conversion with a preview: what it would make, from shapes alone."""
        source, target = _shapes_only(self.source), _shapes_only(with_wholes(self.target))
        values = replace(self, source=source, target=target, preview=None).values()
        if values is None:
            return self
        kept = {short for short, value in values.items() if value is source.tensors.get(short)}
        return replace(self, preview=Preview(values, frozenset(kept), self.source))

    @property
    def by(self) -> str:
        """What converts the layer, for reports."""
        return ", then ".join(filter(None, (self.turn.name if self.turn else "", self.name)))

    @property
    def dropped(self) -> str:
        """What the handler should have returned and did not, where the source has it, or an empty string."""
        left = [
            short
            for short in self.target.tensors
            if short in self.source.tensors and self.preview and short not in self.preview.values
        ]
        return (
            f"handler {self.name} returned no {' and no '.join(left)} for {self.target.name!r}" if left else ""
        )

    @property
    def _place(self) -> str:
        return f"handler {self.name} from {self.source.name!r} to {self.target.name!r}"


def _asks(error: HandlerError) -> str:
    """Return what a handler wants to be told before it converts: what it raised, if it raised that on purpose."""
    return str(error.__cause__) if isinstance(error.__cause__, TransferKitError) else ""


@contextmanager
def _plain_math(*layers: Layer) -> Iterator[None]:
    """Compute in the tensors' own precision and make ordinary tensors, whatever mode the caller is in."""
    devices = {"cpu", *(tensor.device.type for layer in layers for tensor in layer.tensors.values())}
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        for device in filter(torch.amp.is_autocast_available, sorted(devices)):
            modes.enter_context(torch.autocast(device, enabled=False))
        yield


def _shapes_only(layer: Layer) -> Layer:
    """Return a layer whose plain tensors have no values."""
    return replace(
        plain(layer),
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
        excuses: What the caller excuses target tensors from.

    Raises:
        ArgumentError: An unknown handler or ``on_mismatch``.
        SelectionError: A rule that a handler is aimed by matches nothing.
    """

    def __init__(self, handlers: Handlers, on_mismatch: str, target: Target, excuses: Excuses) -> None:
        if on_mismatch not in ("error", "adapt"):
            raise ArgumentError(f"on_mismatch must be 'error' or 'adapt', got {on_mismatch!r}")
        self._target = target
        self._excuses = excuses
        self._scales = Scales(())
        self._aimed: dict[int, Named] = {}
        self.tried: dict[str, Handler] = {}
        self._joined: dict[int, str] = {}
        self.replaced: Sequence[Layer] = ()  # what was joined or taken apart; a caller may mean it by its name
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
            self.tried = {name: self._handlers[name] for name in names}
        self._must_run = tuple(self._handlers)
        if on_mismatch == "adapt":
            automatic = {n: h for n, h in automatic_handlers().items() if n not in self.tried}
            self.tried = {**self.tried, **automatic}

    def join(self, sources: Sequence[Layer]) -> list[Layer]:
        """Return the source's layers, some joined to one by the handlers that do so."""
        layers = settled = settle_layouts(joined(sources, self._target.layers))
        self._scales = Scales(layers)
        for name, handler in {**self._handlers, **self.tried}.items():
            if hasattr(handler, "join"):
                before = {id(layer) for layer in layers}
                layers = handler.join(layers, self._target.layers)
                new = [layer for layer in layers if id(layer) not in before]
                self._ran |= {name for layer in new if isinstance(layer, Composed)}
                self._joined |= {id(layer): name for layer in new if not isinstance(layer, Composed)}
                self._handlers.setdefault(name, handler)
        ids = {id(layer) for layer in layers}
        apart = any(isinstance(layer, Composed) for layer in layers)
        self.replaced = [layer for layer in settled if id(layer) not in ids] if apart else []
        return list(layers)

    def __call__(self, source: Layer, target: Layer) -> Conversion:
        """Return the conversion that must be, else the plain copy where it fits, else the first that fits."""
        codes = self._scales.codes(source, target)
        if not isinstance(source, Composed) and {source.kind, target.kind} == {"conv1d", "linear"}:
            if "fused" not in self.tried:
                return Conversion(source, target, codes={"weight": _TURNED, **codes}).previewed()
            source = compose(target, [(source, 0, 1)], "transposed", source.name)
            self._ran.add("fused")
        must = self._joined.get(id(source)) or self._aimed.get(target.index)
        if must is not None:
            return self._certain(source, target, str(must), codes)
        plain = Conversion(source, target, codes=codes, turn=turn_for(source, target)).previewed()
        if self._fills(plain, whole=True) or not _all_plain(source, with_wholes(target)):
            return plain
        tried = [plain]
        for attempt in self._attempts(source, target, codes):
            if self._fills(attempt, whole=True):
                chosen = attempt
                break
            tried.append(attempt)
        else:  # what fills the whole layer comes before what leaves out a tensor that may be missing
            chosen = next((one for one in tried if self._fills(one)), plain)
        self._ran.add(chosen.name)
        return chosen

    def faults(self, source: Layer, target: Layer) -> list[str]:
        """Return what the listed handlers did wrong with a layer that none of them made fit."""
        attempts = self._attempts(source, target, self._scales.codes(source, target))
        return [attempt.dropped for attempt in attempts if attempt.dropped and attempt.name in self._must_run]

    def advice(self, source: Layer, target: Layer) -> tuple[str, str]:
        """Return the handler that would make a source layer fit, or else what one asks to be told for it.

        Slices are no advice: they fit most, and make nonsense of a classification layer.
        """
        if {source.kind, target.kind} == {"conv1d", "linear"}:
            return "fused", ""
        if self._scales.codes(source, target):
            return "", WAY_OUT
        if not _all_plain(source, with_wholes(target)):
            return "", ""
        turn = turn_for(source, target)
        for name, handler in automatic_handlers().items():
            try:
                conversion = Conversion(source, target, handler, name, turn=turn).previewed()
            except (HandlerError, ArgumentError) as error:
                asks = _asks(error) if isinstance(error, HandlerError) else ""
                if asks:
                    return "", asks
                continue
            if name != "slices" and self._fills(conversion):
                return ("", UNASKED) if _makes_parameters_of_whole_numbers(conversion) else (name, "")
        return "", ""

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

    def _attempts(self, source: Layer, target: Layer, codes: Mapping[str, str]) -> Iterator[Conversion]:
        """Yield what the handlers to be tried make of a layer, those that apply.

        After one that was not listed and wants to be told more, no other is tried: what is left would be a guess.

        Raises:
            HandlerError: A handler failed, or one that the caller listed wants to be told more.
        """
        turn = turn_for(source, target)
        for name, handler in self.tried.items():
            if codes and _is_built_in(handler):
                continue
            asked = name in self._must_run
            try:
                attempt = Conversion(source, target, handler, name, turn=turn).previewed()
            except HandlerError as error:
                if asked or not _asks(error):
                    raise
                return
            if not asked and _makes_parameters_of_whole_numbers(attempt):
                return
            if attempt.preview is not None:
                yield attempt

    def _certain(self, source: Layer, target: Layer, name: str, codes: Mapping[str, str]) -> Conversion:
        turn = turn_for(source, target)
        conversion = Conversion(source, target, self._handlers[name], name, turn=turn).previewed()
        if codes and _is_built_in(self._handlers[name]):
            raise HandlerError(
                f"handler {name} is aimed at {target!r}, and {'; '.join(codes.values())}; {WAY_OUT}"
            )
        if conversion.preview is None:
            raise HandlerError(f"handler {name} is aimed at {target!r} and does not apply to {source!r}")
        self._ran.add(name)
        return conversion

    def _fills(self, conversion: Conversion, *, whole: bool = False) -> bool:
        """Tell whether a conversion fills its target layer, where ``whole`` without what may be missing."""
        if conversion.preview is None or conversion.codes:
            return False
        excuses = replace(self._excuses, allow=Excuses().allow) if whole else self._excuses
        values = conversion.preview.values
        return not unfilled(conversion.target, values, excuses)

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


_TURNED = "one keeps (in, out) as GPT-2's Conv1D, the other (out, in) as a linear layer"


def _makes_parameters_of_whole_numbers(conversion: Conversion) -> bool:
    """Tell whether a cast makes parameters of whole numbers, which it does only where it is asked for."""
    if conversion.name != "cast" or conversion.preview is None:
        return False
    return any(
        isinstance(conversion.target.tensors[short], nn.Parameter)
        and why_not(conversion.source.tensors.get(short, value), value)
        for short, value in conversion.preview.values.items()
    )


def _is_built_in(handler: Handler) -> bool:
    """Tell whether a handler is one of this package's, none of which knows what a quantized weight's codes mean."""
    return getattr(handler, "__module__", "").startswith("transferkit.transfer.handlers.")
