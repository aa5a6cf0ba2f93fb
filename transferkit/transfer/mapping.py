"""Which source layer serves which selected target layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transferkit.errors import ArgumentError, TransferError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer.select import name_matches

Pattern = str | re.Pattern[str]
MappingSpec = str | Mapping[Pattern, str] | Callable[[str], str]


@dataclass(frozen=True)
class Pairing:
    """The outcome of a mapping.

    Attributes:
        source_of: Place of the source layer by place of the target layer, where there is one.
        wanted: Name of the source layer that was looked for, by place of the target layer, where by name.
        text: How the pairs were found, for messages and reports.
        notes: What a reader of the report may want to know.
    """

    source_of: Mapping[int, int]
    wanted: Mapping[int, str]
    text: str
    notes: tuple[str, ...] = ()

    def why_absent(self, place: int, sources: Sequence[Layer]) -> str:
        """Say why a selected target layer has no source layer."""
        if place not in self.wanted:
            return f"the source has only {len(sources)} layers" if self.text == "order" else "no counterpart"
        name, used = self.wanted[place], set(self.source_of.values())
        free = [layer.name for number, layer in enumerate(sources) if number not in used]
        return f"the source has no layer {name!r}{did_you_mean(name, free)}"


def map_by_order(selected: Sequence[int], sources: Sequence[Layer]) -> Pairing:
    """Pair the i-th selected layer with the i-th source layer; shapes are checked like everywhere else."""
    return Pairing(dict(zip(selected, range(len(sources)), strict=False)), {}, "order")


def map_by_name(
    targets: Sequence[Layer], sources: Sequence[Layer], rename: Callable[[str], str], text: str
) -> Pairing:
    """Pair every target layer with the source layer whose name ``rename`` gives for it."""
    places = {layer.name: place for place, layer in enumerate(sources)}
    wanted = {place: rename(layer.name) for place, layer in enumerate(targets)}
    source_of = {place: places[name] for place, name in wanted.items() if name in places}
    return Pairing(source_of, wanted, text)


def renaming(rules: Mapping[Pattern, str], names: Sequence[str]) -> Callable[[str], str]:
    r"""Return the function that maps target names to source names by rules.

    A name that no rule matches maps to itself; of several rules that match, the first counts.

    Args:
        rules: From target to source: a name to a name (``"head": "fc"``); a glob with one ``*`` to a name with
            one (``"backbone.*": "*"``); a compiled regular expression to a template (``r"layer\1"``).
        names: The selected target layers' names; each rule must match one of them.

    Raises:
        TransferError: A rule matches no name.

    Example:
        >>> rename = renaming({"head": "fc", "backbone.*": "*"}, ["backbone.conv1", "head", "norm"])
        >>> [rename(name) for name in ["backbone.conv1", "head", "norm"]]
        ['conv1', 'fc', 'norm']
    """
    idle = [rule for rule in rules if not any(name_matches(rule, name) for name in names)]
    if idle:
        raise TransferError(
            "these mapping rules match no selected layer of the target:\n"
            + "\n".join(f"  {rule!r}: {rules[rule]!r}{did_you_mean(_text(rule), names)}" for rule in idle)
        )

    def rename(name: str) -> str:
        for rule, template in rules.items():
            if name_matches(rule, name):
                return _renamed(rule, template, name)
        return name

    return rename


def _renamed(rule: Pattern, template: str, name: str) -> str:
    if isinstance(rule, re.Pattern):
        match = rule.fullmatch(name)
        return match.expand(template) if match else name
    if template.count("*") > 1 or ("*" in template and rule.count("*") != 1):
        raise ArgumentError(f"mapping rule must have at most one * on each side, got {rule!r}: {template!r}")
    if "*" not in template:
        return template
    head, _, tail = rule.partition("*")
    return template.replace("*", name[len(head) : len(name) - len(tail)])


def _text(rule: Pattern) -> str:
    return rule if isinstance(rule, str) else rule.pattern
