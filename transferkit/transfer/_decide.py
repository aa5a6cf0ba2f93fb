"""Put every tensor of source and target into exactly one bucket, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from transferkit.errors import SelectionError, TransferError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer._conversion import Chooser, Conversion, Excuses, Naming, Preview, may_stay, why_not
from transferkit.transfer._entry import Entry, Side
from transferkit.transfer._mapping import Pairing
from transferkit.transfer._target import Target
from transferkit.transfer.parts import Composed
from transferkit.transfer.select import Predicate, as_rule, names_meant, select_layers

AllowMissing = str | Sequence[str] | Predicate | None


def allowance(allow_missing: AllowMissing, layers: Sequence[Layer]) -> Naming:
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
        return _by_globs("allow_missing", allow_missing, layers, _names)
    text = repr(as_rule(allow_missing))
    places = {layers[place].index for place in select_layers(allow_missing, layers).indices}
    return lambda layer, short: text if layer.index in places else ""


def keeping(keep: str | Sequence[str], layers: Sequence[Layer]) -> Naming:
    """Return the function that names the rule by which a layer's tensor stays as it is, or an empty string.

    Args:
        keep: Globs on tensor keys (``"*.relative_position_index"``).
        layers: The target's layers.

    Raises:
        SelectionError: A glob matches nothing.
    """
    globs = [keep] if isinstance(keep, str) else keep
    return _by_globs("keep", globs, layers, lambda layer, short: (layer.key(short),))


def _names(layer: Layer, short: str) -> tuple[str, ...]:
    return layer.name, layer.key(short)


def _by_globs(
    argument: str,
    globs: Sequence[str],
    layers: Sequence[Layer],
    names_of: Callable[[Layer, str], tuple[str, ...]],
) -> Naming:
    names = dict.fromkeys(
        name for layer in layers for short in layer.tensors for name in names_of(layer, short)
    )
    meant = {glob: names_meant(glob, names) for glob in globs}
    idle = [glob for glob, found in meant.items() if not found]
    if idle:
        hints = [f"  {glob!r}{did_you_mean(glob.rstrip('*.'), names)}" for glob in idle]
        raise SelectionError(f"{argument} matches no layer or tensor of the target:\n" + "\n".join(hints))

    def name_rule(layer: Layer, short: str) -> str:
        return next((repr(glob) for glob in globs if not meant[glob].isdisjoint(names_of(layer, short))), "")

    return name_rule


def require_kept(entries: Sequence[Entry], layers: Sequence[Layer], keep: Naming) -> None:
    """Refuse to keep a tensor that is written under another name.

    Raises:
        TransferError: It is the same memory as one that is written.
    """
    kept = {layer.key(short) for layer in layers for short in layer.tensors if keep(layer, short)}
    for entry in entries:
        if entry.tied_to and entry.key in kept:
            raise TransferError(
                f"keep= names {entry.key}, which is the same memory as {entry.tied_to}, and that is written; "
                "the model is bit for bit as it was. Next step: keep both, or neither: "
                f"keep={[entry.key, entry.tied_to]!r}"
            )


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
    excuses: Excuses,
) -> Decision:
    """Decide for every tensor on both sides.

    Nothing is refused here: what a transfer may not do is told from the entries.

    Args:
        target: The model.
        pairing: Which source layer serves which target layer.
        selected: Places of the selected target layers.
        choose: Chooses the conversion for a target layer and a source layer.
        excuses: What the caller excuses target tensors from.
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
            decision.entries += [_unfilled(layer, s, excuses, reason) for s in layer.tensors]
        else:
            conversion = choose(sources[number], layer)
            decision.conversions.append(conversion)
            decision.entries += _advised(_paired(conversion, excuses), conversion, choose)
    for number, source in enumerate(sources):
        if number not in used:
            decision.entries += [_source_only("unexpected", side) for side in _each_side(source)]
    if any(isinstance(source, Composed) for source in sources):
        decision.entries = _once(decision.entries)
    return decision


def _once(entries: Sequence[Entry]) -> list[Entry]:
    """Leave out lines on a source tensor alone that another line has: parts of one tensor go to several."""
    seen = {side.key for entry in entries if entry.target is not None for side in entry.sources}
    kept: list[Entry] = []
    for entry in entries:
        if entry.target is not None or entry.key not in seen:
            kept.append(entry)
        if entry.target is None:
            seen.add(entry.key)
    return kept


def _paired(conversion: Conversion, excuses: Excuses) -> list[Entry]:
    """Account for a target layer that has a source layer."""
    source, layer = conversion.source, conversion.target
    preview = conversion.preview or Preview({}, frozenset())
    left = _sides(source)
    entries = []
    for short, tensor in layer.tensors.items():
        side = Side.of(layer.key(short), tensor)
        if rule := excuses.keep(layer, short):
            entries.append(_kept(side, rule, left.pop(short, ())))
            continue
        if short not in preview.values:
            entries.append(_unfilled(layer, short, excuses, _why_unfilled(conversion, short)))
            continue
        opposite = left.pop(short, ())
        bucket, reason = _bucket(conversion, preview, short)
        handler = conversion.told if bucket == "adapted" else ""
        entries.append(Entry(bucket, side, opposite, tensor.numel(), handler, reason))
    return _with_leftovers(entries, [side for several in left.values() for side in several], layer)


def _why_unfilled(conversion: Conversion, short: str) -> str:
    source, layer = conversion.source, conversion.target
    if conversion.handler is not None:
        return f"handler {conversion.name} returned no {short} for {layer.name!r}"
    return f"{source.name!r} has no {short}"


def _kept(side: Side, rule: str, sources: tuple[Side, ...] = ()) -> Entry:
    return Entry("skipped", side, sources, prod(side.shape), reason=f"kept by {rule}")


def _bucket(conversion: Conversion, preview: Preview, short: str) -> tuple[str, str]:
    """Return the bucket of a tensor that has a value, and the reason where it is mismatched."""
    value, tensor = preview.values[short], conversion.target.tensors[short]
    reason = conversion.codes.get(short) or why_not(value, tensor)
    if reason:
        return "mismatched", reason
    if isinstance(conversion.source, Composed):
        return "adapted", ""
    if conversion.name == "cast":
        return "cast" if conversion.source.tensors.get(short, tensor).dtype != tensor.dtype else "copied", ""
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
    """Say of a layer that does not fit which handlers would make it fit, and what the listed ones did wrong."""
    if not any(entry.is_problem for entry in entries):
        return entries
    source, target = conversion.source, conversion.target
    name, asks = ("", "") if conversion.handler else choose.advice(source, target)
    faults = [] if conversion.handler else choose.faults(source, target)
    words = [*faults, *([f"handler {name!r} would make it fit"] if name else [])]
    return [
        replace(entry, handler=name, reason="; ".join([entry.reason, *words]), advice=asks)
        if entry.is_problem
        else entry
        for entry in entries
    ]


def _unfilled(layer: Layer, short: str, excuses: Excuses, reason: str) -> Entry:
    """Account for a target tensor that its source layer does not have."""
    side = Side.of(layer.key(short), layer.tensors[short])
    if rule := excuses.keep(layer, short):
        return _kept(side, rule)
    stays = may_stay(layer, short)
    if stays:
        return Entry("skipped", side, (), prod(side.shape), reason=stays)
    return Entry("missing", side, (), prod(side.shape), reason=reason, allowed=excuses.allow(layer, short))


def _not_selected(layer: Layer, source: Layer | None) -> list[Entry]:
    """Account for a target layer that is not selected, and for the source layer opposite."""
    left = {} if source is None else _sides(source)
    entries = []
    for short, (side,) in _sides(layer).items():
        entries.append(Entry("skipped", side, left.pop(short, ()), prod(side.shape), reason="not selected"))
    rest = [side for several in left.values() for side in several]
    return entries + [_source_only("skipped", side, "its layer is not selected") for side in rest]


def _source_only(bucket: str, side: Side, reason: str = "") -> Entry:
    return Entry(bucket, None, (side,), prod(side.shape), reason=reason)


def _sides(layer: Layer) -> dict[str, tuple[Side, ...]]:
    """Return what each of a layer's tensors is made of: itself, but in a composed layer."""
    if not isinstance(layer, Composed):
        return {short: (Side.of(layer.key(short), tensor),) for short, tensor in layer.tensors.items()}
    return {
        short: tuple(
            Side.of(piece.layer.key(piece.short), piece.layer.tensors[piece.short])
            for piece in pieces
            if piece.short in piece.layer.tensors
        )
        for short, pieces in layer.pieces.items()
    }


def _each_side(layer: Layer) -> list[Side]:
    return [side for several in _sides(layer).values() for side in several]
