"""What a selection rule is, how rules combine, and the rules: by index, name and kind, before and after.

A rule looks at the whole sequence of layers, so that it can count from the end and knows what comes before
what. A rule that matches nothing is a mistake in the rule, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from inspect import signature

from torch import nn

from transferkit.errors import ArgumentError, SelectionError, did_you_mean, listed
from transferkit.layers import Layer


@dataclass(frozen=True, repr=False, eq=False)
class Rule:
    """A rule that selects layers; combine rules, or a rule and a callable, with ``&``, ``|`` and ``~``.

    Attributes:
        text: The rule as its author wrote it, for messages and reports.
        find: Returns the positions of the layers that match; raises SelectionError where there are none.
        parts: The rules that this one combines; empty for a simple rule.
    """

    text: str
    find: Callable[[Sequence[Layer]], frozenset[int]]
    parts: tuple[Rule, ...] = ()

    def __and__(self, other: Predicate) -> Rule:
        return _combine("&", self, as_rule(other))

    def __or__(self, other: Predicate) -> Rule:
        return _combine("|", self, as_rule(other))

    def __rand__(self, other: Predicate) -> Rule:
        return _combine("&", as_rule(other), self)

    def __ror__(self, other: Predicate) -> Rule:
        return _combine("|", as_rule(other), self)

    def __invert__(self) -> Rule:
        def find(layers: Sequence[Layer]) -> frozenset[int]:
            return frozenset(range(len(layers))) - self.find(layers)

        return Rule(f"~{self.text}", find, (self,))

    def __repr__(self) -> str:
        return self.text


Predicate = Rule | Callable[[int, Layer], bool]
"""What selects layers: a rule, or any function ``(index, layer) -> bool``; true means select this layer."""


@dataclass(frozen=True)
class Selection:
    """The layers that a rule selects.

    Attributes:
        indices: Positions of the selected layers, ascending.
        counts: How many layers the rule as written selects, then each simple rule in it if there are several.
    """

    indices: tuple[int, ...]
    counts: tuple[tuple[str, int], ...]


def select_layers(predicate: Predicate, layers: Sequence[Layer]) -> Selection:
    """Return the layers that a predicate selects.

    Raises:
        SelectionError: A simple rule matches no layer, or all together select none. Every such rule is named.

    Example:
        >>> from torch import nn
        >>> from transferkit.layers import layers_of
        >>> from transferkit.transfer.select import by_kind, by_name
        >>> layers = layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 2)))
        >>> for text, count in select_layers(by_kind("conv") | by_name("2"), layers).counts:
        ...     print(count, text)
        2 by_kind('conv') | by_name('2')
        1 by_kind('conv')
        1 by_name('2')
    """
    rule = as_rule(predicate)
    counts, problems = [], []
    for simple in _simple_rules(rule):
        try:
            counts.append((simple.text, len(simple.find(layers))))
        except SelectionError as error:
            problems.append(str(error))
    if problems:
        raise SelectionError("\n".join(problems))
    indices = tuple(sorted(rule.find(layers)))
    if not indices:
        matched = ", ".join(f"{text} matches {count}" for text, count in counts)
        raise SelectionError(f"{rule} selects none of {len(layers)} layers: {matched}")
    written = (
        rule.text[1:-1] if rule.text.startswith("(") else rule.text
    )  # the outermost parentheses say nothing
    whole = [(written, len(indices))] if rule.parts else []
    return Selection(indices, (*whole, *counts))


def as_rule(predicate: Predicate) -> Rule:
    """Return a predicate as a rule; a plain callable is asked ``(index, layer)`` of every layer.

    Raises:
        ArgumentError: It is neither a rule nor callable with two arguments; a string gets the rule that was probably
            meant.
    """
    if isinstance(predicate, Rule):
        return predicate
    if not callable(predicate):
        hint = f", perhaps by_name({predicate!r})" if isinstance(predicate, str) else ""
        raise ArgumentError(
            f"a selection must be a rule or a callable (index, layer) -> bool{hint}, got {predicate!r}"
        )
    _require_two_arguments(predicate)
    call = predicate
    name = getattr(call, "__name__", type(call).__name__)
    return simple_rule(
        name, lambda layers: {place for place, layer in enumerate(layers) if call(layer.index, layer)}
    )


def _require_two_arguments(predicate: Callable[..., object]) -> None:
    """Refuse a callable that cannot be asked ``(index, layer)``, before it is asked of any layer."""
    try:
        asked = signature(predicate)
    except (TypeError, ValueError):  # some built-in ones do not tell
        return
    try:
        asked.bind(0, None)
    except TypeError as error:
        raise ArgumentError(
            f"a selection is asked (index, layer) of every layer, which {predicate!r} does not take: {error}; write "
            "lambda index, layer: ..."
        ) from None


def simple_rule(text: str, find: Callable[[Sequence[Layer]], Collection[int]]) -> Rule:
    """Make a rule of a function that finds places; to find none is an error that repeats the rule.

    Args:
        text: The rule as its author wrote it.
        find: Returns the places of the layers that match.
    """

    def checked(layers: Sequence[Layer]) -> frozenset[int]:
        found = frozenset(find(layers))
        if not found:
            raise SelectionError(f"{text} matches none of {len(layers)} layers")
        return found

    return Rule(text, checked)


def _combine(sign: str, left: Rule, right: Rule) -> Rule:
    def find(layers: Sequence[Layer]) -> frozenset[int]:
        a, b = left.find(layers), right.find(layers)
        return a & b if sign == "&" else a | b

    return Rule(f"({left.text} {sign} {right.text})", find, (left, right))


def _simple_rules(rule: Rule) -> list[Rule]:
    return [simple for part in rule.parts for simple in _simple_rules(part)] if rule.parts else [rule]


# The rules: by index, by name, by kind, before and after.

KINDS = ("conv", "linear", "norm", "embedding", "recurrent", "attention", "conv1d", "other")


def every() -> Rule:
    """Select every layer."""
    return simple_rule("every()", lambda layers: range(len(layers)))


def by_index(*which: int | range | slice) -> Rule:
    """Select layers by their 0-based place in definition order; negative numbers count from the end.

    Args:
        which: Numbers, ranges (each number of which must exist) and slices (which are cut to what exists).

    Example:
        >>> from transferkit.layers import layers_of
        >>> from transferkit.transfer.select import select_layers
        >>> layers = layers_of(nn.Sequential(*(nn.Linear(1, 1) for _ in range(6))))
        >>> select_layers(by_index(0, range(2, 4), slice(-1, None)), layers).indices
        (0, 2, 3, 5)
    """
    text = f"by_index({', '.join(_index_text(item) for item in which)})"

    def find(layers: Sequence[Layer]) -> Collection[int]:
        places = range(len(layers))
        chosen: set[int] = set()
        for item in which:
            if isinstance(item, slice):
                chosen.update(places[item])
                continue
            wanted = [item] if isinstance(item, int) else list(item)
            absent = [number for number in wanted if not -len(layers) <= number < len(layers)]
            if absent:
                raise SelectionError(f"{text}: no layer {absent[0]}; there are layers 0 to {len(layers) - 1}")
            chosen.update(places[number] for number in wanted)
        return chosen

    return simple_rule(text, find)


def by_name(*patterns: str | re.Pattern[str]) -> Rule:
    """Select layers by name.

    Args:
        patterns: Names, globs (``*`` also matches dots) and compiled regular expressions; each must match whole
            names. A layer that is called so is meant before those that a glob would match.

    Example:
        >>> from transferkit.layers import layers_of
        >>> from transferkit.transfer.select import select_layers
        >>> layers = layers_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)))
        >>> select_layers(by_name("0", re.compile("[2-9]")), layers).indices
        (0, 2)
    """
    text = f"by_name({', '.join(map(repr, patterns))})"

    def find(layers: Sequence[Layer]) -> Collection[int]:
        names = [layer.name for layer in layers]
        chosen: set[str] = set()
        for pattern in patterns:
            found = names_meant(pattern, names)
            if not found:
                raise SelectionError(f"{text}: {_no_such_name(pattern, names)}")
            chosen |= found
        return {place for place, name in enumerate(names) if name in chosen}

    return simple_rule(text, find)


def by_kind(*kinds: str | type[nn.Module]) -> Rule:
    """Select layers by kind (``"conv"``, ``"linear"``, ``"norm"``, ...) or by the module's type.

    Example:
        >>> from transferkit.layers import layers_of
        >>> from transferkit.transfer.select import select_layers
        >>> layers = layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)))
        >>> select_layers(by_kind("norm", nn.Linear), layers).indices
        (1, 2)
    """
    text = f"by_kind({', '.join(repr(kind) if isinstance(kind, str) else kind.__name__ for kind in kinds)})"
    unknown = [kind for kind in kinds if isinstance(kind, str) and kind not in KINDS]
    if unknown:
        raise ArgumentError(
            f"kinds are {', '.join(KINDS)}, got {unknown[0]!r}{did_you_mean(unknown[0], KINDS)}"
        )

    def find(layers: Sequence[Layer]) -> Collection[int]:
        chosen: set[int] = set()
        for kind in kinds:
            found = {place for place, layer in enumerate(layers) if _is_kind(layer, kind)}
            if not found:
                present = ", ".join(sorted({layer.kind for layer in layers}))
                raise SelectionError(f"{text}: none of {len(layers)} layers is that; their kinds are {present}")
            chosen |= found
        return chosen

    return simple_rule(text, find)


def before(layer: str | int) -> Rule:
    """Select what is defined before a layer, without it.

    Args:
        layer: Its index, its name, or the name of a container, which stands for the first layer in it.
    """
    text = f"before({layer!r})"
    return simple_rule(text, lambda layers: range(_span(text, layer, layers)[0]))


def after(layer: str | int) -> Rule:
    """Select what is defined after a layer, without it.

    Args:
        layer: Its index, its name, or the name of a container, which stands for the last layer in it.
    """
    text = f"after({layer!r})"
    return simple_rule(text, lambda layers: range(_span(text, layer, layers)[1], len(layers)))


def names_meant(pattern: str | re.Pattern[str], names: Collection[str]) -> frozenset[str]:
    """Return the names that a pattern means: the one that is spelled so, else all that it matches as a whole.

    Example:
        >>> sorted(names_meant("conv[0]", ["conv0", "conv1"])), sorted(names_meant("conv[0]", ["conv[0]", "conv0"]))
        (['conv0'], ['conv[0]'])
    """
    if isinstance(pattern, re.Pattern):
        return frozenset(name for name in names if pattern.fullmatch(name))
    if pattern in names:
        return frozenset([pattern])
    return frozenset(name for name in names if fnmatchcase(name, pattern))


def _index_text(item: int | range | slice) -> str:
    return repr(item) if not isinstance(item, slice) else f"slice({item.start}, {item.stop}, {item.step})"


def _is_kind(layer: Layer, kind: str | type[nn.Module]) -> bool:
    return layer.kind == kind if isinstance(kind, str) else isinstance(layer.module, kind)


def _span(text: str, which: str | int, layers: Sequence[Layer]) -> tuple[int, int]:
    """Return the first place of a layer or container and the place after its last."""
    if isinstance(which, int):
        if not -len(layers) <= which < len(layers):
            raise SelectionError(f"{text}: no layer {which}; there are layers 0 to {len(layers) - 1}")
        place = range(len(layers))[which]
        return place, place + 1
    places = [place for place, layer in enumerate(layers) if f"{layer.name}.".startswith(f"{which}.")]
    if not places:
        raise SelectionError(f"{text}: {_no_such_name(which, [layer.name for layer in layers])}")
    return places[0], places[-1] + 1


def _no_such_name(pattern: str | re.Pattern[str], names: Sequence[str]) -> str:
    """Say that no layer has a name, and what the author may have meant."""
    if isinstance(pattern, re.Pattern):
        inside = any(pattern.search(name) for name in names)
        hint = "; it matches inside names, and must match whole ones" if inside else ""
        return f"no layer's whole name matches {pattern.pattern!r}{hint}"
    held = sum(name.startswith(f"{pattern}.") for name in names)
    if held:
        return f"{pattern!r} is no layer but holds {held}; write {escape(pattern) + '.*'!r}"
    hint = (
        did_you_mean(pattern.rstrip("*."), names)
        or f"; the layers are {listed([repr(name) for name in names])}"
    )
    return f"no layer named {pattern!r} among {len(names)}{hint}"
