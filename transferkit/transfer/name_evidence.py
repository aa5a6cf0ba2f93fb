"""What names say for or against an alignment that was found by shapes.

Layers that stand side by side and look the same could be paired either way round: a block's query and key, its last
convolution and its shortcut. Their order in the file says nothing where it is the author's whim. Names decide, or
the pairs are left open.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence

_ROLES = {
    word: role
    for role, words in {
        "query": "q wq query queries",
        "key": "k wk key keys",
        "value": "v wv value values",
        "out": "o wo out output",
        "skip": "skip shortcut downsample identity bypass",
        "norm": "norm ln layernorm bn batchnorm",
        "attention": "attn attention",
    }.items()
    for word in words.split()
}
_ORDINALS = {
    word: str(number)
    for number, words in enumerate(("a first", "b second", "c third", "d fourth"), 1)
    for word in words.split()
}


def doubtful(targets: Sequence[str], sources: Sequence[str], looks: Sequence[Hashable]) -> dict[int, set[int]]:
    """Return the pairs that could as well be paired with each other's source, by place.

    Args:
        targets: Names of the paired target layers, in order.
        sources: Names of the source layers that they are paired with.
        looks: What each pair's tensors look like.

    Returns:
        For each doubtful place the other places whose source it may belong to.

    Example:
        >>> doubtful(["attn.k", "attn.q"], ["self.query", "self.key"], ["4x4", "4x4"])
        {0: {1}, 1: {0}}
        >>> doubtful(["attn.q", "attn.k"], ["self.query", "self.key"], ["4x4", "4x4"])
        {}
        >>> doubtful(["block.conv1", "block.conv2"], ["0.body.0", "0.body.3"], ["4x4", "4x4"])
        {}
    """
    doubts: dict[int, set[int]] = {}
    for first, second, length in _neighbours(looks):
        here, there = range(first, first + length), range(second, second + length)
        if all(_numbered(names, here, there) for names in (targets, sources)):
            continue
        straight = sum(_shared(targets[place], sources[place]) for place in (*here, *there))
        crossed = sum(
            _shared(targets[a], sources[b]) + _shared(targets[b], sources[a])
            for a, b in zip(here, there, strict=True)
        )
        if straight <= crossed:
            for a, b in zip(here, there, strict=True):
                doubts.setdefault(a, set()).add(b)
                doubts.setdefault(b, set()).add(a)
    return dict(sorted(doubts.items()))


def shifted(targets: Sequence[str], sources: Sequence[str]) -> set[int]:
    """Return the pairs of numbered blocks that overlap without one holding the other, by place.

    Where one side writes a block as norm and attention and the other as attention and norm, an alignment in order
    pairs the norm of one block with that of the next.

    Example:
        >>> shifted(["1.attn", "2.norm", "2.attn", "3.norm"], ["1.attn", "1.norm", "2.attn", "2.norm"])
        {0, 1, 2, 3}
        >>> shifted(["1.attn", "1.norm", "2.attn"], ["attn1.0", "norm1.0", "attn2.0"])
        set()
    """
    blocks = [(_block(target), _block(source)) for target, source in zip(targets, sources, strict=True)]
    partners: dict[tuple[int, str], set[str]] = {}
    for target, source in blocks:
        if target and source:
            partners.setdefault((0, target), set()).add(source)
            partners.setdefault((1, source), set()).add(target)
    return {
        place
        for place, (target, source) in enumerate(blocks)
        if target and source and _tangled(target, source, partners)
    }


def _tangled(target: str, source: str, partners: Mapping[tuple[int, str], set[str]]) -> bool:
    """Tell whether both blocks of a pair, or a partner of theirs, have several partners."""
    if len(partners[0, target]) > 1 and len(partners[1, source]) > 1:
        return True
    return any(
        len(partners[1, other]) > 1 for other in partners[0, target] if len(partners[0, target]) > 1
    ) or any(len(partners[0, other]) > 1 for other in partners[1, source] if len(partners[1, source]) > 1)


def _neighbours(looks: Sequence[Hashable]) -> Iterator[tuple[int, int, int]]:
    """Yield every two neighbouring stretches that look the same: both starts, and their length."""
    count = len(looks)
    for length in range(1, count // 2 + 1):
        run = 0
        for place in range(count - length):
            run = run + 1 if looks[place] == looks[place + length] else 0
            if run >= length:
                start = place - length + 1
                yield start, start + length, length


def _numbered(names: Sequence[str], here: range, there: range) -> bool:
    """Tell whether two stretches of names differ in numbers alone, which ascend."""
    pairs = [(_parts(names[a]), _parts(names[b])) for a, b in zip(here, there, strict=True)]
    return all(
        [part if not part.isdigit() else "#" for part in one]
        == [part if not part.isdigit() else "#" for part in two]
        and _numbers(one) < _numbers(two)
        for one, two in pairs
    )


def _numbers(parts: Sequence[str]) -> list[int]:
    return [int(part) for part in parts if part.isdigit()]


def _parts(name: str) -> list[str]:
    """Split a name into words and numbers: ``"layer1.conv_a" -> ["layer", "1", "conv", "1"]``."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [_ORDINALS.get(part.lower(), part.lower()) for part in found]


def _shared(target: str, source: str) -> int:
    """Return how many words of one name have a counterpart in the other."""
    words = [_words(target), _words(source)]
    return sum(any(_alike(word, other) for other in words[1]) for word in words[0])


def _words(name: str) -> set[str]:
    return {_ROLES.get(part, part) for part in _parts(name) if not part.isdigit()}


def _alike(word: str, other: str) -> bool:
    shorter, longer = sorted((word, other), key=len)
    return word == other or (len(shorter) >= 3 and longer.startswith(shorter))


def _block(name: str) -> str:
    """Return the innermost numbered container of a layer: ``"layer1.0.downsample.0" -> "layer1.0"``."""
    parts = name.split(".")[:-1]
    while parts and not re.search(r"\d", parts[-1]):
        parts.pop()
    return ".".join(parts)
