"""What a selection rule is, how rules combine with ``&``, ``|`` and ``~``, and what they select.

A rule looks at the whole sequence of layers, so that it can count from the end and knows what comes before
what. A rule that matches nothing is a mistake in the rule, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from transferkit.errors import ArgumentError, SelectionError
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
        counts: How many layers each simple rule in it matches, in the order written.
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
        >>> from transferkit.transfer.rules import by_kind, by_name
        >>> layers = layers_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 2)))
        >>> select_layers(by_kind("conv") | by_name("2"), layers)
        Selection(indices=(0, 1), counts=(("by_kind('conv')", 1), ("by_name('2')", 1)))
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
    return Selection(indices, tuple(counts))


def as_rule(predicate: Predicate) -> Rule:
    """Return a predicate as a rule; a plain callable is asked ``(index, layer)`` of every layer.

    Raises:
        ArgumentError: It is neither a rule nor callable; a string gets the rule that was probably meant.
    """
    if isinstance(predicate, Rule):
        return predicate
    if not callable(predicate):
        hint = f", perhaps by_name({predicate!r})" if isinstance(predicate, str) else ""
        raise ArgumentError(
            f"a selection must be a rule or a callable (index, layer) -> bool{hint}, got {predicate!r}"
        )
    call = predicate
    name = getattr(call, "__name__", type(call).__name__)
    return simple_rule(
        name, lambda layers: {place for place, layer in enumerate(layers) if call(layer.index, layer)}
    )


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
