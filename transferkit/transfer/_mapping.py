"""Which source layer serves which selected target layer: by name, by order, by rules or by a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transferkit.errors import ArgumentError, TransferError, did_you_mean, listed, require
from transferkit.layers import Layer
from transferkit.transfer._name_evidence import without_numbers
from transferkit.transfer.parts import Composed, Part, Sources, compose
from transferkit.transfer.select import names_meant

Pattern = str | re.Pattern[str]

# Looking for near names compares every two; beyond this many absent layers the names are another scheme anyway.
_HINTS = 16


@dataclass(frozen=True)
class Pairing:
    """The outcome of a mapping.

    Attributes:
        text: How the pairs were found, for messages and reports.
        sources: The source's layers, with tensors under the target's short names where these differ.
        source_of: Place of the source layer by place of the target layer, where there is one.
        absent: Why there is none, by place of the target layer.
        advice: What would find more, to be said where a layer is missing.
    """

    text: str
    sources: Sequence[Layer]
    source_of: Mapping[int, int]
    absent: Mapping[int, str] = field(default_factory=dict)
    advice: tuple[str, ...] = ()


def map_by_order(targets: Sequence[Layer], selected: Sequence[int], sources: Sequence[Layer]) -> Pairing:
    """Pair the i-th selected layer with the i-th source layer; shapes are checked like everywhere else.

    Raises:
        TransferError: The source's order says nothing, or names say that it is another than the target's.
    """
    source_of = dict(zip(selected, range(len(sources)), strict=False))
    _require_order(targets, selected, sources)
    _require_uncrossed(
        {targets[place]: sources[number] for place, number in source_of.items()}, targets, sources
    )
    absent = {place: f"the source has only {len(sources)} layers" for place in selected[len(sources) :]}
    return Pairing("order", sources, source_of, absent)


def map_by_name(
    targets: Sequence[Layer],
    selected: Sequence[int],
    sources: Sequence[Layer],
    rename: Callable[[str], Sources] = lambda name: name,
    text: str = "name",
) -> Pairing:
    """Pair every target layer with the source layer whose name ``rename`` gives for it.

    Args:
        targets: The target's layers.
        selected: Places of those that are selected.
        sources: The source's layers.
        rename: From a target to a source name, or to several or a part of one.
        text: How the names were found.
    """
    wanted = {place: rename(layer.name) for place, layer in enumerate(targets)}
    return _by_names(wanted, targets, selected, sources, text)


def map_by_function(
    targets: Sequence[Layer],
    selected: Sequence[int],
    sources: Sequence[Layer],
    function: Callable[[str], Sources],
) -> Pairing:
    """Pair every selected layer with the source layer whose name a caller's function gives for it.

    Raises:
        ArgumentError: The function raises, or returns something other than a name; the layer is named.
    """
    wanted = {place: _asked(function, targets[place].name) for place in selected}
    return _by_names(wanted, targets, selected, sources, "a function")


def _asked(function: Callable[[str], Sources], name: str) -> Sources:
    try:
        found = function(name)
    except Exception as error:
        raise ArgumentError(
            f"mapping({name!r}) raised {type(error).__name__}: {error}; it must return the name of a source layer "
            "for every selected layer"
        ) from error
    require(_are_sources(found), f"mapping({name!r})", "the name of a source layer", found)
    return found


def _are_sources(value: object) -> bool:
    several = [value] if isinstance(value, str | Part) else value
    return (
        isinstance(several, list | tuple) and bool(several) and all(isinstance(v, str | Part) for v in several)
    )


def composed(
    wanted: Mapping[int, Sources], targets: Sequence[Layer], sources: Sequence[Layer]
) -> tuple[dict[int, str], list[Layer]]:
    """Return names for what is wanted, and the source's layers with those made that are joined or a part of one.

    Where a source layer that is to be joined is not there, its name is what is wanted.
    """
    by_name = {key: layer for layer in sources for key in (layer.name, layer.path or layer.name)}
    names, layers = {}, list(sources)
    for place, value in wanted.items():
        parts = [value] if isinstance(value, str | Part) else value
        pieces = [(p.layer, p.place, p.of) if isinstance(p, Part) else (p, 0, 1) for p in parts]
        absent = [name for name, *_ in pieces if name not in by_name]
        if absent or isinstance(value, str):
            names[place] = absent[0] if absent else pieces[0][0]
            continue
        found = [(by_name[name], number, of) for name, number, of in pieces]
        made = compose(targets[place], found, "join" if len(found) > 1 else "part")
        names[place] = f"{made.name}, for {targets[place].name}"
        layers.append(replace(made, name=names[place]))
    return names, layers


def _by_names(
    values: Mapping[int, Sources],
    targets: Sequence[Layer],
    selected: Sequence[int],
    sources: Sequence[Layer],
    text: str,
) -> Pairing:
    """Pair target layers, by place, with the source layers of the names that are wanted for them."""
    wanted, sources = composed(values, targets, sources)
    own = {layer.name for layer in sources if isinstance(layer, Composed)}
    known = {key for layer in sources for key in (layer.name, layer.path)}
    wanted |= {p: targets[p].name for p, name in wanted.items() if name not in known and targets[p].name in own}
    source_of = _named(targets, sources, wanted)
    lost = {place: wanted[place] for place in selected if place not in source_of}
    used = set(source_of.values())
    free = [layer.name for place, layer in enumerate(sources) if place not in used]
    absent = {
        place: f"the source has no layer {name!r}" + (did_you_mean(name, free) if len(lost) <= _HINTS else "")
        for place, name in lost.items()
    }
    return Pairing(text, sources, source_of, absent, _prefix_advice(list(lost.values()), set(free)))


def _named(targets: Sequence[Layer], sources: Sequence[Layer], wanted: Mapping[int, str]) -> dict[int, int]:
    """Return the source layer of each wanted name: the one that is called so in its file, else by its bare name.

    A layer that its own name claims is nobody else's: with ``module.fc`` and ``fc`` on one side, ``fc`` is not both.
    """
    exact = {layer.path or layer.name: place for place, layer in enumerate(sources)}
    bare = {layer.name: place for place, layer in enumerate(sources)}
    full = {
        p: targets[p].path if name == targets[p].name and targets[p].path else name
        for p, name in wanted.items()
    }
    source_of = {place: exact[name] for place, name in full.items() if name in exact}
    claimed = set(source_of.values())
    for place, name in wanted.items():
        if place not in source_of and name in bare and bare[name] not in claimed:
            source_of[place] = bare[name]
    return source_of


def renaming(rules: Mapping[Pattern, Sources], names: Sequence[str]) -> Callable[[str], Sources]:
    r"""Return the function that maps target names to source names by rules.

    A name that no rule matches maps to itself; of several rules that match, the first counts.

    Args:
        rules: From target to source: a name to a name (``"head": "fc"``); a glob with one ``*`` to a name with
            one (``"backbone.*": "*"``); a compiled regular expression to a template (``r"layer\1"``); any of
            these to a ``Part`` of such a name, or to several, which are joined in that order.
        names: The target layers' names; each rule must match one of them.

    Raises:
        TransferError: A rule matches no name.
        ArgumentError: A rule has more than one ``*`` on a side, or gives what is no name.

    Example:
        >>> rename = renaming({"head": "fc", "backbone.*": "*"}, ["backbone.conv1", "head", "norm"])
        >>> [rename(name) for name in ["backbone.conv1", "head", "norm"]]
        ['conv1', 'fc', 'norm']
    """
    for rule, value in rules.items():
        require(_are_sources(value), f"mapping[{rule!r}]", "a source name, a Part or several of these", value)
    meant = {rule: names_meant(rule, names) for rule in rules}
    idle = [rule for rule, matched in meant.items() if not matched]
    if idle:
        raise TransferError(
            "these mapping rules match no layer of the target:\n"
            + "\n".join(f"  {rule!r}: {rules[rule]!r}{did_you_mean(_text(rule), names)}" for rule in idle)
        )

    def rename(name: str) -> Sources:
        for rule, value in rules.items():
            if name in meant[rule]:
                return _each_renamed(rule, value, name)
        return name

    return rename


def _require_order(targets: Sequence[Layer], selected: Sequence[int], sources: Sequence[Layer]) -> None:
    """Refuse a source whose layers do not stand in definition order, as some formats and sorted files leave them."""
    if all(layer.ordered for layer in sources):
        return
    raise TransferError(
        "mapping='order' needs the order in which the source's layers were defined, which its file does not keep. "
        f"Next step: {_instead_of_order([targets[place] for place in selected], sources)}"
    )


def _require_uncrossed(
    pairs: Mapping[Layer, Layer], targets: Sequence[Layer], sources: Sequence[Layer]
) -> None:
    """Refuse pairs that cross names: one side has the other's name elsewhere, on a layer that looks the same.

    Names that differ in numbers alone are no names to go by while the numbers ascend on both sides: one author counts
    from 0, the other from 1.
    """
    here, there = (
        {layer.name: layer.shapes for layer in targets},
        {layer.name: layer.shapes for layer in sources},
    )
    in_step = [name for name in here if name in there] == [name for name in there if name in here]
    crossed = [
        f"{target.name!r} would take {source.name!r}"
        for target, source in pairs.items()
        if (there.get(target.name) == target.shapes or here.get(source.name) == source.shapes)
        and target.name != source.name
        and not (in_step and without_numbers(target.name) == without_numbers(source.name))
    ]
    if crossed:
        raise TransferError(
            f"mapping='order' goes against the names: {listed(crossed, 4)}. "
            f"Next step: {_instead_of_order(list(pairs), sources)}"
        )


def _instead_of_order(targets: Sequence[Layer], sources: Sequence[Layer]) -> str:
    """Say what tells the layers apart where their order does not."""
    shapes = {layer.name: layer.shapes for layer in sources}
    if all(shapes.get(layer.name) == layer.shapes for layer in targets):
        return "mapping='name', since names and shapes agree on all"
    return "mapping='structure', or say which is which: mapping={'target name': 'source name', ...}"


def _each_renamed(rule: Pattern, value: Sources, name: str) -> Sources:
    if isinstance(value, str):
        return _renamed(rule, value, name)
    if isinstance(value, Part):
        return replace(value, layer=_renamed(rule, value.layer, name))
    several = (_each_renamed(rule, one, name) for one in value)
    return tuple(one for one in several if isinstance(one, str | Part))


def _renamed(rule: Pattern, template: str, name: str) -> str:
    if isinstance(rule, re.Pattern):
        match = rule.fullmatch(name)
        return match.expand(template) if match else name
    if template.count("*") > 1 or ("*" in template and rule.count("*") != 1):
        raise ArgumentError(f"a mapping rule must have at most one * on each side, got {rule!r}: {template!r}")
    if "*" not in template:
        return template
    head, _, tail = rule.partition("*")
    return template.replace("*", name[len(head) : len(name) - len(tail)])


def _prefix_advice(lost: Sequence[str], free: set[str]) -> tuple[str, ...]:
    """Tell which rule would find the layers that were not found, where one prefix makes the difference."""
    if not lost:
        return ()
    for name in sorted(free):
        prefix = name.removesuffix(lost[0])
        if prefix not in ("", name) and all(prefix + other in free for other in lost):
            return (f"find them under the source's {prefix!r}: mapping={{'*': '{prefix}*'}}",)
    prefix = f"{lost[0].partition('.')[0]}."
    if all(other.startswith(prefix) and other.removeprefix(prefix) in free for other in lost):
        return (f"find them without the target's {prefix!r}: mapping={{'{prefix}*': '*'}}",)
    return ()


def _text(rule: Pattern) -> str:
    return rule if isinstance(rule, str) else rule.pattern
