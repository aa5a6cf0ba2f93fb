"""Mapping by structure: which source layer serves a target layer whose every name is spelled another way.

Where both sides stand in definition order: the longest common subsequence of the two, found by dynamic programming.
Pairs keep their order, and as many layers as possible have a counterpart with tensors of the same shapes. Where a
file lost the order, only shapes that no other layer has tell. Layers of one look that have the same names on both
sides are told by these, either way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from transferkit.errors import LayerNotFoundError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer._mapping import Pairing, Pattern, composed, renaming
from transferkit.transfer._name_evidence import doubtful, is_elsewhere, is_outdone, shifted
from transferkit.transfer._turns import in_torch
from transferkit.transfer.parts import Composed, Sources, pieces_of, renamed

# What other frameworks and hand-written layers call the same tensors.
_ALIASES = {
    "kernel": "weight",
    "w": "weight",
    "gamma": "weight",
    "scale": "weight",
    "g": "weight",
    "a_2": "weight",
    "b": "bias",
    "beta": "bias",
    "b_2": "bias",
    "shift": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_var": "running_var",
}


@dataclass(frozen=True)
class Alignment:
    """Which source layers each target layer may be paired with.

    Attributes:
        options: For each target layer the places of the source layers that some best alignment pairs it with;
            ``None`` among them stands for an alignment that leaves it without one.
    """

    options: tuple[tuple[int | None, ...], ...]


def align(targets: Sequence[Layer], sources: Sequence[Layer]) -> Alignment:
    """Align target layers with source layers.

    Args:
        targets: Layers of the target, in definition order.
        sources: Layers of the source, in definition order.

    Example:
        >>> from torch import nn
        >>> from transferkit.layers import layers_of
        >>> two = layers_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(2, 2)))
        >>> three = layers_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> align(two, three).options
        ((0,), (1, 2))
    """
    alike = _alike(targets, sources)
    rows, columns = len(targets), len(sources)
    # ahead[i][j]: most pairs among the first i targets and the first j sources; behind[i][j]: among the rest.
    ahead = [[0] * (columns + 1) for _ in range(rows + 1)]
    behind = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        for j in range(columns):
            ahead[i + 1][j + 1] = max(ahead[i][j] + alike[i][j], ahead[i][j + 1], ahead[i + 1][j])
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            behind[i][j] = max(behind[i + 1][j + 1] + alike[i][j], behind[i + 1][j], behind[i][j + 1])
    best = ahead[rows][columns]
    options: list[tuple[int | None, ...]] = []
    for i in range(rows):
        pairs: list[int | None] = [
            j for j in range(columns) if alike[i][j] and ahead[i][j] + 1 + behind[i + 1][j + 1] == best
        ]
        left_out = any(ahead[i][j] + behind[i + 1][j] == best for j in range(columns + 1))
        options.append((*pairs, *([None] if left_out else [])))
    return Alignment(tuple(options))


def tensor_names(target: Layer, source: Layer) -> dict[str, str] | None:
    """Return for each of a target layer's tensors the source tensor that it is, or ``None`` where there is none.

    Tensors are the same by name, or by a name that other frameworks use for it, or by a shape that only one on each
    side has. Whole numbers without dimensions, which count batches, do not count.

    Example:
        >>> import torch
        >>> norm = Layer(0, "norm", "norm", {"weight": torch.ones(8), "bias": torch.ones(8)})
        >>> tensor_names(norm, Layer(0, "ln", "other", {"gamma": torch.ones(8), "beta": torch.ones(8)}))
        {'weight': 'gamma', 'bias': 'beta'}
    """
    wanted, offered = _tensors(target), _tensors(source)
    names: dict[str, str] = {}
    by_alias = {_ALIASES.get(short, short): short for short in offered}
    for short, tensor in wanted.items():
        other = by_alias.get(_ALIASES.get(short, short))
        if other is not None and _shape(offered[other]) == _shape(tensor):
            names[short] = other
    left = {short: _shape(tensor) for short, tensor in wanted.items() if short not in names}
    free = {short: _shape(tensor) for short, tensor in offered.items() if short not in names.values()}
    if Counter(left.values()) != Counter(free.values()) or len(set(left.values())) != len(left):
        return None
    by_shape = {shape: short for short, shape in free.items()}
    return names | {short: by_shape[shape] for short, shape in left.items()}


def signature(layer: Layer) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return what layers of the same look have in common: names and shapes of the tensors that count."""
    tensors = _tensors(layer)
    return tuple(sorted((_ALIASES.get(short, short), _shape(tensor)) for short, tensor in tensors.items()))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Return a shape without the ones at its end: a 1x1 convolution looks like a linear layer."""
    shape = tuple(tensor.shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _alike(targets: Sequence[Layer], sources: Sequence[Layer]) -> list[list[bool]]:
    """Return whether each target layer can take each source layer, comparing every two looks once."""
    known: dict[object, bool] = {}
    source_looks = [signature(source) for source in sources]
    table = []
    for target in targets:
        look = (
            signature(target),
            type(target.module),
        )  # the module tells how another format's axes are to be turned
        row = []
        for source, other in zip(sources, source_looks, strict=True):
            if (look, other) not in known:
                known[look, other] = (
                    bool(look[0]) and tensor_names(target, in_torch(source, target)) is not None
                )
            row.append(known[look, other])
        table.append(row)
    return table


def _tensors(layer: Layer) -> Mapping[str, Tensor]:
    counted = {
        s: tensor for s, tensor in layer.tensors.items() if tensor.ndim > 0 or tensor.is_floating_point()
    }
    # What is looked up by index is a buffer here and none there; alone it is all that a layer has.
    return {s: tensor for s, tensor in counted.items() if tensor.dtype != torch.int64} or counted


Options = dict[int, tuple[int | None, ...]]

_SHOWN = 8  # candidates for one layer that a message names


@dataclass(frozen=True)
class ByStructure:
    """Mapping by structure with some pairs given, for what structure alone leaves open.

    Attributes:
        known: From target to source names, globs or regular expressions, as in a mapping by rules.
    """

    known: Mapping[Pattern, Sources] = field(default_factory=dict)


def map_by_structure(
    targets: Sequence[Layer],
    selected: Sequence[int],
    sources: Sequence[Layer],
    known: Mapping[Pattern, Sources],
    replaced: Sequence[Layer] = (),
) -> Pairing:
    """Pair layers by the shapes of their tensors, their order and their names; what is open stays open.

    All target layers are aligned, not the selected ones alone: three blocks of twelve could be any three.

    Args:
        targets: The target's layers.
        selected: Places of those that are selected.
        sources: The source's layers.
        known: Pairs that are given rather than found.
        replaced: Layers in whose place others stand among the sources, and which a given pair may still name.

    Raises:
        TransferError: A known rule matches nothing.
        LayerNotFoundError: A known pair names a source layer that is not there.
    """
    given, sources = _given(targets, sources, known, replaced)
    options = _options(targets, sources, given)
    found = {place: choices[0] for place, choices in options.items() if len(choices) == 1}
    source_of = given | {place: source for place, source in found.items() if source is not None}
    renamed = list(sources)
    for place, number in source_of.items():
        renamed[number] = _with_names_of(targets[place], sources[number])
    absent = {place: _why(options[place], sources) for place in selected if place not in source_of}
    open_places = [place for place in absent if len(options[place]) > 1]
    return Pairing("structure", renamed, source_of, absent, _advice(open_places, targets, sources))


def _given(
    targets: Sequence[Layer],
    sources: Sequence[Layer],
    known: Mapping[Pattern, Sources],
    replaced: Sequence[Layer],
) -> tuple[dict[int, int], list[Layer]]:
    """Return the pairs that are given, by place, and the source's layers with those made that they need."""
    rename = renaming(known, [layer.name for layer in targets])
    values = {place: rename(layer.name) for place, layer in enumerate(targets)}
    made = {layer.name for layer in sources if isinstance(layer, Composed) and layer.how == "tokens"}
    told = {p: v for p, v in values.items() if v != targets[p].name or targets[p].name in {*known, *made}}
    wanted, layers = composed(told, targets, [*replaced, *sources])
    named = set(wanted.values()) - {layer.name for layer in sources}
    meant = [layer for layer in layers if layer.name in named]
    gone = {id(used) for layer in meant for used in (layer, *pieces_of(layer))}
    left = [s for s in sources if gone.isdisjoint((id(s), *map(id, pieces_of(s))))]
    layers = [*left, *meant]
    places = {layer.name: place for place, layer in enumerate(layers)}
    for place, name in wanted.items():
        if name not in places:
            hint = did_you_mean(name, places)
            raise LayerNotFoundError(f"no source layer {name!r} for {targets[place].name!r}{hint}")
    return {place: places[name] for place, name in wanted.items()}, layers


def _options(targets: Sequence[Layer], sources: Sequence[Layer], given: Mapping[int, int]) -> Options:
    """Return the source layers that each target layer may be paired with, the given ones set aside."""
    here = [place for place in range(len(targets)) if place not in given]
    there = [place for place in range(len(sources)) if place not in set(given.values())]
    named = _namesakes(targets, sources, here, there)
    by_name: Options = {place: (source,) for place, source in named.items()}
    if _keeps_order(sources) and all(a < b for a, b in pairwise(named.values())):
        return _doubted(_aligned(targets, sources, given), targets, sources, there) | by_name
    return _by_looks(targets, sources, here, there) | by_name


def _namesakes(
    targets: Sequence[Layer], sources: Sequence[Layer], here: Sequence[int], there: Sequence[int]
) -> dict[int, int]:
    """Return the pairs of layers with one name, of those looks whose layers all have a namesake on the other side."""
    names = ({p: targets[p].name for p in here}, {p: sources[p].name for p in there})
    looks = ({p: signature(targets[p]) for p in here}, {p: signature(sources[p]) for p in there})
    groups: list[dict[object, dict[str, int]]] = [{}, {}]
    for side in (0, 1):
        for place, look in looks[side].items():
            groups[side].setdefault(look, {})[names[side][place]] = place
    pairs = {
        place: groups[1][look][name]
        for look, members in groups[0].items()
        if look and members.keys() == groups[1].get(look, {}).keys()
        for name, place in members.items()
    }
    return dict(sorted(pairs.items()))


def _by_looks(
    targets: Sequence[Layer], sources: Sequence[Layer], here: Sequence[int], there: Sequence[int]
) -> Options:
    """Return all that looks alike; there is no choice only where a look is one layer's alone on both sides."""
    alike = _alike([targets[place] for place in here], [sources[place] for place in there])
    takers = [sum(row[column] for row in alike) for column in range(len(there))]
    options: Options = {}
    for place, row in zip(here, alike, strict=True):
        found = [column for column in range(len(there)) if row[column]]
        alone = len(found) == 1 and takers[found[0]] == 1
        options[place] = (*(there[column] for column in found), *([] if alone else [None]))
    return _doubted(options, targets, sources, there)


def _keeps_order(sources: Sequence[Layer]) -> bool:
    return all(layer.ordered for layer in sources)


def _aligned(targets: Sequence[Layer], sources: Sequence[Layer], given: Mapping[int, int]) -> Options:
    """Return the source layers that each target layer may be paired with, the given ones set aside."""
    here = [place for place in range(len(targets)) if place not in given]
    there = [place for place in range(len(sources)) if place not in set(given.values())]
    alignment = align([targets[place] for place in here], [sources[place] for place in there])
    return {
        place: tuple(None if choice is None else there[choice] for choice in choices)
        for place, choices in zip(here, alignment.options, strict=True)
    }


def _doubted(
    options: Options, targets: Sequence[Layer], sources: Sequence[Layer], free: Sequence[int]
) -> Options:
    """Return the options with those added that names leave open where the alignment itself does not.

    Args:
        options: By place of the target layer.
        targets: The target's layers.
        sources: The source's layers.
        free: Places of the source layers that are not given to a target layer.
    """
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
    here, there = {targets[place].name for place in options}, {sources[place].name for place in free}
    left_here = _by_look(targets[place] for place in options if place not in dict(certain))
    left_there = _by_look(sources[place] for place in free if place not in dict(certain).values())
    for place, source in certain:
        target_name, source_name, look = targets[place].name, sources[source].name, signature(targets[place])
        if is_elsewhere(target_name, source_name, here, there) or is_outdone(
            target_name, source_name, left_here.get(look, ()), left_there.get(look, ())
        ):
            doubted[place] = (*doubted[place], None) if None not in doubted[place] else doubted[place]
    return doubted


def _by_look(layers: Iterable[Layer]) -> dict[object, list[str]]:
    """Return the names of layers by their look."""
    names: dict[object, list[str]] = {}
    for layer in layers:
        names.setdefault(signature(layer), []).append(layer.name)
    return names


def _with_names_of(target: Layer, source: Layer) -> Layer:
    """Return the source layer with its tensors under the target's short names; they keep their own keys."""
    names = {} if source.layout != "torch" else tensor_names(target, source) or {}
    taken = {other: short for short, other in names.items() if short != other}
    if not taken:
        return source
    return renamed(source, taken)


def _why(choices: Sequence[int | None], sources: Sequence[Layer]) -> str:
    names = [repr(sources[choice].name) for choice in choices if choice is not None]
    if not names:
        return f"no layer of the source{', in order,' * _keeps_order(sources)} has tensors of these shapes"
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return "ambiguous: " + " or ".join(names[:_SHOWN] + more + ["none"] * (None in choices))


def _advice(places: Sequence[int], targets: Sequence[Layer], sources: Sequence[Layer]) -> tuple[str, ...]:
    """Tell how to settle what is ambiguous."""
    if not places:
        return ()
    place = places[0]
    count = f"{len(places)} layer{'s are' if len(places) > 1 else ' is'} ambiguous"
    known = f"{{{targets[place].name!r}: '...'}}"
    lost = "" if _keeps_order(sources) else ", whose order the source's file does not keep"
    return (f"say which is which, {count}{lost}: mapping=ByStructure({known}), globs welcome",)
