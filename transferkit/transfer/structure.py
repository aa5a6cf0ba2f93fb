"""Mapping by structure: which source layer serves a target layer whose every name is spelled another way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from transferkit.errors import LayerNotFoundError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer.alignment import align, signature, tensor_names
from transferkit.transfer.mapping import Pairing, Pattern, renaming, require_definition_order
from transferkit.transfer.name_evidence import doubtful, shifted

Options = dict[int, tuple[int | None, ...]]


@dataclass(frozen=True)
class ByStructure:
    """Mapping by structure with some pairs given, for what structure alone leaves open.

    Attributes:
        known: From target to source names, globs or regular expressions, as in a mapping by rules.
    """

    known: Mapping[Pattern, str] = field(default_factory=dict)


def map_by_structure(
    targets: Sequence[Layer], selected: Sequence[int], sources: Sequence[Layer], known: Mapping[Pattern, str]
) -> Pairing:
    """Pair layers in order by the shapes of their tensors; what that leaves open stays open, with the candidates.

    All target layers are aligned, not the selected ones alone: three blocks of twelve could be any three.

    Args:
        targets: The target's layers.
        selected: Places of those that are selected.
        sources: The source's layers.
        known: Pairs that are given rather than found.

    Raises:
        TransferError: The source is in alphabetical order, or a known rule matches nothing.
        LayerNotFoundError: A known pair names a source layer that is not there.
    """
    require_definition_order(sources)
    given = _given(targets, sources, known)
    options = _doubted(_aligned(targets, sources, given), targets, sources)
    found = {place: choices[0] for place, choices in options.items() if len(choices) == 1}
    source_of = given | {place: source for place, source in found.items() if source is not None}
    renamed = list(sources)
    for place, number in source_of.items():
        renamed[number] = _with_names_of(targets[place], sources[number])
    absent = {place: _why(options[place], sources) for place in selected if place not in source_of}
    open_places = [place for place in absent if len(options[place]) > 1]
    return Pairing("structure", renamed, source_of, absent, _advice(open_places, options, targets, sources))


def _given(targets: Sequence[Layer], sources: Sequence[Layer], known: Mapping[Pattern, str]) -> dict[int, int]:
    """Return the pairs that are given, by place."""
    names = [layer.name for layer in sources]
    rename = renaming(known, [layer.name for layer in targets])
    pairs = {}
    for place, layer in enumerate(targets):
        name = rename(layer.name)
        if name == layer.name and name not in known:
            continue
        if name not in names:
            raise LayerNotFoundError(f"no source layer {name!r} for {layer.name!r}{did_you_mean(name, names)}")
        pairs[place] = names.index(name)
    return pairs


def _aligned(targets: Sequence[Layer], sources: Sequence[Layer], given: Mapping[int, int]) -> Options:
    """Return the source layers that each target layer may be paired with, the given ones set aside."""
    here = [place for place in range(len(targets)) if place not in given]
    there = [place for place in range(len(sources)) if place not in set(given.values())]
    alignment = align([targets[place] for place in here], [sources[place] for place in there])
    return {
        place: tuple(None if choice is None else there[choice] for choice in choices)
        for place, choices in zip(here, alignment.options, strict=True)
    }


def _doubted(options: Options, targets: Sequence[Layer], sources: Sequence[Layer]) -> Options:
    """Return the options with those added that names leave open where the alignment itself does not."""
    pairs = [(place, choices[0]) for place, choices in options.items() if len(choices) == 1]
    certain = [(place, source) for place, source in pairs if source is not None]
    target_names = [targets[place].name for place, _ in certain]
    source_names = [sources[source].name for _, source in certain]
    looks = [signature(targets[place]) for place, _ in certain]
    doubted = dict(options)
    for number, others in doubtful(target_names, source_names, looks).items():
        place, source = certain[number]
        doubted[place] = tuple(sorted({source, *(certain[other][1] for other in others)}))
    for number in shifted(target_names, source_names):
        place, source = certain[number]
        doubted[place] = (*doubted[place], None) if None not in doubted[place] else doubted[place]
    return doubted


def _with_names_of(target: Layer, source: Layer) -> Layer:
    """Return the source layer with its tensors under the target's short names; they keep their own keys."""
    names = tensor_names(target, source) or {}
    taken = {other: short for short, other in names.items() if short != other}
    if not taken:
        return source
    return replace(
        source,
        tensors={taken.get(short, short): tensor for short, tensor in source.tensors.items()},
        states={taken.get(short, short): state for short, state in source.states.items()},
        keys={taken.get(short, short): source.key(short) for short in source.tensors},
    )


def _why(choices: Sequence[int | None], sources: Sequence[Layer]) -> str:
    names = [repr(sources[choice].name) for choice in choices if choice is not None]
    if not names:
        return "no layer of the source, in order, has tensors of these shapes"
    return "ambiguous: " + " or ".join(names + ["none"] * (None in choices))


def _advice(
    places: Sequence[int], options: Options, targets: Sequence[Layer], sources: Sequence[Layer]
) -> tuple[str, ...]:
    """Tell how to settle what is ambiguous."""
    if not places:
        return ()
    place = places[0]
    candidate = next(sources[choice].name for choice in options[place] if choice is not None)
    count = f"{len(places)} layer{'s are' if len(places) > 1 else ' is'} ambiguous"
    known = f"{{{targets[place].name!r}: {candidate!r}, ...}}"
    return (f"say which is which, {count}: mapping=ByStructure({known}), globs welcome",)
