"""Put every tensor of source and target into exactly one bucket, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod

from transferkit.errors import SelectionError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer._conversion import Chooser, Conversion, Preview, may_stay, why_not
from transferkit.transfer._entry import Entry, Side
from transferkit.transfer._mapping import Pairing
from transferkit.transfer._target import Target
from transferkit.transfer.select import Predicate, as_rule, select_layers

AllowMissing = str | Sequence[str] | Predicate | None


def allowance(allow_missing: AllowMissing, layers: Sequence[Layer]) -> Callable[[Layer, str], str]:
    """Return the function that names the rule by which a layer's tensor may be missing, or an empty string.

    Args:
        allow_missing: Globs on layer names (``"classifier.*"``) or tensor keys (``"*.bias"``), or a rule.
        layers: The target's layers.

    Raises:
        SelectionError: A glob or rule matches nothing.
    """
    if allow_missing is None:
        return lambda layer, short: ""
    if isinstance(allow_missing, str):
        allow_missing = [allow_missing]
    if isinstance(allow_missing, Sequence):
        return _by_globs(allow_missing, layers)
    text = repr(as_rule(allow_missing))
    places = {layers[place].index for place in select_layers(allow_missing, layers).indices}
    return lambda layer, short: text if layer.index in places else ""


def _by_globs(globs: Sequence[str], layers: Sequence[Layer]) -> Callable[[Layer, str], str]:
    names = [name for layer in layers for name in (layer.name, *map(layer.key, layer.tensors))]
    idle = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)]
    if idle:
        hints = [f"  {glob!r}{did_you_mean(glob.rstrip('*.'), names)}" for glob in idle]
        raise SelectionError("allow_missing matches no layer or tensor of the target:\n" + "\n".join(hints))

    def allow(layer: Layer, short: str) -> str:
        return next(
            (
                repr(glob)
                for glob in globs
                if fnmatchcase(layer.name, glob) or fnmatchcase(layer.key(short), glob)
            ),
            "",
        )

    return allow


Allow = Callable[[Layer, str], str]


@dataclass
class Decision:
    """What is to become of every tensor, and the conversions that make it so."""

    entries: list[Entry] = field(default_factory=list)
    conversions: list[Conversion] = field(default_factory=list)


def decide(
    target: Target,
    pairing: Pairing,
    selected: frozenset[int],
    choose: Chooser,
    allow: Allow,
) -> Decision:
    """Decide for every tensor on both sides.

    Nothing is refused here: what a transfer may not do is told from the entries.

    Args:
        target: The model.
        pairing: Which source layer serves which target layer.
        selected: Places of the selected target layers.
        choose: Chooses the conversion for a target layer and a source layer.
        allow: Returns the rule that allows a target tensor to be missing, or an empty string.
    """
    decision, sources = Decision(), pairing.sources
    used = {pairing.source_of[place] for place in selected if place in pairing.source_of}
    for place, layer in enumerate(target.layers):
        number = pairing.source_of.get(place)
        if place not in selected:
            opposite = None if number is None or number in used else sources[number]
            used |= set() if opposite is None or number is None else {number}
            decision.entries += _not_selected(layer, opposite)
        elif number is None:
            reason = pairing.absent[place]
            decision.entries += [_unfilled(layer, s, allow, reason) for s in layer.tensors]
        else:
            conversion = choose(sources[number], layer)
            decision.conversions.append(conversion)
            decision.entries += _advised(_paired(conversion, allow), conversion, choose)
    for number, source in enumerate(sources):
        if number not in used:
            decision.entries += [_source_only("unexpected", side) for side in _sides(source).values()]
    return decision


def _paired(conversion: Conversion, allow: Allow) -> list[Entry]:
    """Account for a target layer that has a source layer."""
    source, layer = conversion.source, conversion.target
    preview = conversion.preview() or Preview({}, frozenset())
    left = _sides(source)
    entries = []
    for short, tensor in layer.tensors.items():
        if short not in preview.values:
            entries.append(_unfilled(layer, short, allow, f"{source.name!r} has no {short}"))
            continue
        opposite = left.pop(short, None)
        side = Side.of(layer.key(short), tensor)
        bucket, reason = _bucket(conversion, preview, short)
        handler = conversion.name if bucket == "adapted" else ""
        entries.append(Entry(bucket, side, (opposite,) if opposite else (), tensor.numel(), handler, reason))
    return _with_leftovers(entries, list(left.values()), layer)


def _bucket(conversion: Conversion, preview: Preview, short: str) -> tuple[str, str]:
    """Return the bucket of a tensor that has a value, and the reason where it is mismatched."""
    value, tensor = preview.values[short], conversion.target.tensors[short]
    reason = why_not(value, tensor)
    if reason:
        return "mismatched", reason
    if conversion.name == "cast":
        return "cast" if conversion.source.tensors[short].dtype != tensor.dtype else "copied", ""
    if short not in preview.kept:
        return "adapted", ""
    return "copied" if value.dtype == tensor.dtype else "cast", ""


def _with_leftovers(entries: list[Entry], left: list[Side], layer: Layer) -> list[Entry]:
    """Account for source tensors without a namesake: a handler's first result used them, or nothing did."""
    for place, entry in enumerate(entries):
        if entry.bucket == "adapted":
            entries[place] = replace(entry, sources=(*entry.sources, *left))
            return entries
    reason = f"{layer.name!r} has no tensor of that name"
    return entries + [_source_only("unexpected", side, reason) for side in left]


def _advised(entries: list[Entry], conversion: Conversion, choose: Chooser) -> list[Entry]:
    """Name the handlers that would make a layer fit, where it does not."""
    if not any(entry.is_problem for entry in entries):
        return entries
    name = next(choose.would_fit(conversion.source, conversion.target), "")
    advice = f", handler {name!r} would make it fit" if name else ""
    return [
        replace(entry, handler=name, reason=entry.reason + advice) if entry.is_problem else entry
        for entry in entries
    ]


def _unfilled(layer: Layer, short: str, allow: Allow, reason: str) -> Entry:
    """Account for a target tensor that its source layer does not have."""
    side = Side.of(layer.key(short), layer.tensors[short])
    stays = may_stay(layer, short)
    if stays:
        return Entry("skipped", side, (), prod(side.shape), reason=stays)
    return Entry("missing", side, (), prod(side.shape), reason=reason, allowed=allow(layer, short))


def _not_selected(layer: Layer, source: Layer | None) -> list[Entry]:
    """Account for a target layer that is not selected, and for the source layer opposite."""
    left = {} if source is None else _sides(source)
    entries = []
    for short, side in _sides(layer).items():
        opposite = left.pop(short, None)
        sources = (opposite,) if opposite else ()
        entries.append(Entry("skipped", side, sources, prod(side.shape), reason="not selected"))
    return entries + [_source_only("skipped", side, "its layer is not selected") for side in left.values()]


def _source_only(bucket: str, side: Side, reason: str = "") -> Entry:
    return Entry(bucket, None, (side,), prod(side.shape), reason=reason)


def _sides(layer: Layer) -> dict[str, Side]:
    return {short: Side.of(layer.key(short), tensor) for short, tensor in layer.tensors.items()}
