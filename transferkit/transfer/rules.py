"""The rules: by index, by name, by kind, before and after."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from transferkit.errors import ArgumentError, SelectionError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer.select import Rule, simple_rule

KINDS = ("conv", "linear", "norm", "embedding", "recurrent", "attention", "other")


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
        patterns: Globs (``*`` also matches dots) and compiled regular expressions; each must match whole names.

    Example:
        >>> from transferkit.layers import layers_of
        >>> from transferkit.transfer.select import select_layers
        >>> layers = layers_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)))
        >>> select_layers(by_name("0", re.compile("[2-9]")), layers).indices
        (0, 2)
    """
    text = f"by_name({', '.join(map(repr, patterns))})"

    def find(layers: Sequence[Layer]) -> Collection[int]:
        chosen: set[int] = set()
        for pattern in patterns:
            found = {place for place, layer in enumerate(layers) if name_matches(pattern, layer.name)}
            if not found:
                raise SelectionError(f"{text}: {_no_such_name(pattern, [layer.name for layer in layers])}")
            chosen |= found
        return chosen

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


def name_matches(pattern: str | re.Pattern[str], name: str) -> bool:
    """Tell whether a glob or a compiled regular expression matches a whole name."""
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    return pattern.fullmatch(name) is not None


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
        return f"{pattern!r} is no layer but holds {held}; write '{pattern}.*'"
    hint = did_you_mean(pattern.rstrip("*."), names) or f"; the layers are {_first_few(names)}"
    return f"no layer named {pattern!r} among {len(names)}{hint}"


def _first_few(names: Sequence[str], count: int = 8) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(repr, names[:count])) + more
