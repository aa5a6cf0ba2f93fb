"""Put every tensor of source and target into exactly one bucket, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from torch import Tensor

from transferkit.layers import Layer
from transferkit.transfer.conversion import Conversion, Preview
from transferkit.transfer.entry import Entry, Side
from transferkit.transfer.mapping import Pairing
from transferkit.transfer.target import Target

Choose = Callable[[Layer, Layer], Conversion]
Allow = Callable[[Layer, str], str]


@dataclass
class Decision:
    """What is to become of every tensor, and the conversions that make it so."""

    entries: list[Entry] = field(default_factory=list)
    conversions: list[Conversion] = field(default_factory=list)


def decide(
    target: Target,
    sources: Sequence[Layer],
    selected: frozenset[int],
    pairing: Pairing,
    choose: Choose,
    allow: Allow,
) -> Decision:
    """Decide for every tensor on both sides.

    A target layer without a source layer may still be allowed to be missing; what a transfer refuses is told
    from the entries.

    Args:
        target: The model.
        sources: The source's layers.
        selected: Places of the selected target layers.
        pairing: Which source layer serves which target layer.
        choose: Returns the conversion for a target layer and a source layer.
        allow: Returns the rule that allows a target tensor to be missing, or an empty string.
    """
    decision = Decision()
    for place, layer in enumerate(target.layers):
        source = None if place not in pairing.source_of else sources[pairing.source_of[place]]
        if place not in selected:
            decision.entries += _not_selected(layer, source)
        elif source is None:
            reason = pairing.why_absent(place, sources)
            decision.entries += [
                _unfilled(layer, short, target.derived, allow, reason) for short in layer.tensors
            ]
        else:
            conversion = choose(source, layer)
            decision.conversions.append(conversion)
            decision.entries += _paired(conversion, target.derived, allow)
    used = set(pairing.source_of.values())
    for place, source in enumerate(sources):
        decision.entries += [] if place in used else _unused(source)
    return decision


def why_not(value: Tensor, target: Tensor) -> str:
    """Say why a tensor cannot be written into another as it is, or return an empty string."""
    if value.shape != target.shape:
        return "another shape"
    if value.dtype == target.dtype or (value.is_floating_point() and target.is_floating_point()):
        return ""
    return "" if value.is_complex() and target.is_complex() else "another kind of number"


def fills(layer: Layer, values: Mapping[str, Tensor], derived: frozenset[str]) -> bool:
    """Tell whether tensors fill a target layer as they are."""
    return all(
        not why_not(values[short], tensor) if short in values else bool(_may_stay(layer, short, derived))
        for short, tensor in layer.tensors.items()
    )


def _paired(conversion: Conversion, derived: frozenset[str], allow: Allow) -> list[Entry]:
    """Account for a target layer that has a source layer."""
    source, layer = conversion.source, conversion.target
    preview = conversion.preview() or Preview({}, frozenset())
    left = {short: Side.of(source.key(short), tensor) for short, tensor in source.tensors.items()}
    entries = []
    for short, tensor in layer.tensors.items():
        value = preview.values.get(short)
        if value is None:
            reason = f"{source.name!r} has no {short}"
            entries.append(_unfilled(layer, short, derived, allow, reason))
            continue
        side, opposite = Side.of(layer.key(short), tensor), left.pop(short, None)
        entry = Entry("copied", side, (opposite,) if opposite else (), tensor.numel())
        reason = why_not(value, tensor)
        if reason:
            entry = replace(entry, bucket="mismatched", reason=reason)
        elif conversion.name == "cast" or (short in preview.kept and value.dtype != tensor.dtype):
            entry = replace(entry, bucket="cast" if tensor.dtype != source.tensors[short].dtype else "copied")
        elif short not in preview.kept:
            entry = replace(entry, bucket="adapted", handler=conversion.name)
        entries.append(entry)
    return _with_leftovers(entries, list(left.values()), conversion)


def _with_leftovers(entries: list[Entry], left: list[Side], conversion: Conversion) -> list[Entry]:
    """Account for source tensors without a namesake: a handler's first result used them, or nothing did."""
    adapted = [place for place, entry in enumerate(entries) if entry.bucket == "adapted"]
    if adapted:
        first = entries[adapted[0]]
        entries[adapted[0]] = replace(first, sources=(*first.sources, *left))
        return entries
    reason = f"{conversion.target.name!r} has no tensor of that name"
    return entries + [Entry("unexpected", None, (side,), prod(side.shape), reason=reason) for side in left]


def _unfilled(layer: Layer, short: str, derived: frozenset[str], allow: Allow, reason: str) -> Entry:
    """Account for a target tensor that its source layer does not have."""
    tensor = layer.tensors[short]
    side = Side.of(layer.key(short), tensor)
    stays = _may_stay(layer, short, derived)
    if stays:
        return Entry("skipped", side, (), tensor.numel(), reason=stays)
    return Entry("missing", side, (), tensor.numel(), reason=reason, allowed=allow(layer, short))


def _may_stay(layer: Layer, short: str, derived: frozenset[str]) -> str:
    """Say why a target tensor needs no source, or return an empty string."""
    if layer.key(short) in derived:
        return "the model makes this buffer itself"
    # Batch norm looks at its batch counter only where it averages without momentum; many files have none.
    if short == "num_batches_tracked" and getattr(layer.module, "momentum", None) is not None:
        return "a counter that is used only without momentum"
    return ""


def _not_selected(layer: Layer, source: Layer | None) -> list[Entry]:
    """Account for a target layer that is not selected, and for the source layer opposite."""
    left = (
        {} if source is None else {short: Side.of(source.key(short), t) for short, t in source.tensors.items()}
    )
    entries = []
    for short, tensor in layer.tensors.items():
        opposite = left.pop(short, None)
        side = Side.of(layer.key(short), tensor)
        entries.append(
            Entry("skipped", side, (opposite,) if opposite else (), tensor.numel(), reason="not selected")
        )
    return entries + [
        Entry("skipped", None, (side,), prod(side.shape), reason="its layer is not selected")
        for side in left.values()
    ]


def _unused(source: Layer) -> list[Entry]:
    """Account for a source layer that nothing uses."""
    return [
        Entry("unexpected", None, (Side.of(source.key(short), tensor),), tensor.numel())
        for short, tensor in source.tensors.items()
    ]
