"""What names say for or against an alignment that was found by shapes.

Layers that stand side by side and look the same could be paired either way round: a block's query and key, its last
convolution and its shortcut. Their order in the file says nothing where it is the author's whim. Names decide, or
the pairs are left open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

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

    Any two pairs that look the same are, if their names share more words the other way round. Children of one module,
    on both sides, are even if names are silent, since an author may define them in this order or that; unless their
    names differ in ascending numbers alone.

    Args:
        targets: Names of the paired target layers, in order.
        sources: Names of the source layers that they are paired with.
        looks: What each pair's tensors look like.

    Returns:
        For each doubtful place the other places whose source it may belong to.

    Example:
        >>> doubtful(["attn.k", "attn.q"], ["self.query", "self.key"], ["4x4", "4x4"])
        {0: {1}, 1: {0}}
        >>> doubtful(["attn.left", "attn.right"], ["self.query", "self.key"], ["4x4", "4x4"])
        {0: {1}, 1: {0}}
        >>> doubtful(["attn.q", "attn.k"], ["self.query", "self.key"], ["4x4", "4x4"])
        {}
        >>> doubtful(["block.conv1", "block.conv2"], ["0.body.0", "0.body.3"], ["4x4", "4x4"])
        {}
    """
    words = [[_words(name) for name in names] for names in (targets, sources)]
    sizes = [_sizes(names) for names in (targets, sources)]
    doubted = [(range(a, a + 1), range(b, b + 1)) for a, b in _look_alikes(looks) if _gain(words, [(a, b)]) > 0]
    for here, there in (*_neighbors(targets, sources, looks), *_children(targets, sources, looks)):
        siblings = _are_siblings(targets, here, there, sizes[0]) and _are_siblings(
            sources, here, there, sizes[1]
        )
        if siblings and _gain(words, zip(here, there, strict=True)) >= 0:
            doubted.append((here, there))
    others: dict[int, set[int]] = {}
    for here, there in doubted:
        for a, b in zip(here, there, strict=True):
            others.setdefault(a, set()).add(b)
            others.setdefault(b, set()).add(a)
    return dict(sorted(others.items()))


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


def is_elsewhere(target: str, source: str, targets: Collection[str], sources: Collection[str]) -> bool:
    """Tell whether the name of one layer of a pair is that of another layer on the other side.

    Names that differ in numbers alone are no evidence: one author counts from 0, the other from 1.

    Example:
        >>> is_elsewhere("fc", "body", ["fc", "body"], ["body", "fc"])
        True
        >>> is_elsewhere("fc1", "fc0", ["fc1", "fc2"], ["fc0", "fc1"])
        False
    """
    if target == source or (target not in sources and source not in targets):
        return False
    return without_numbers(target) != without_numbers(source)


def is_outdone(target: str, source: str, targets: Iterable[str], sources: Iterable[str]) -> bool:
    """Tell whether one of a pair shares more words with a layer that looks the same and has no partner.

    Example:
        >>> is_outdone("net.opal", "birch", [], ["opal"]), is_outdone("net.opal", "opal", [], ["birch"])
        (True, False)
    """
    here, there = _words(target), _words(source)
    shared = _shared(here, there)
    return any(_shared(here, _words(other)) > shared for other in sources) or any(
        _shared(_words(other), there) > shared for other in targets
    )


def _tangled(target: str, source: str, partners: Mapping[tuple[int, str], set[str]]) -> bool:
    """Tell whether both blocks of a pair, or a partner of theirs, have several partners."""
    if len(partners[0, target]) > 1 and len(partners[1, source]) > 1:
        return True
    return any(
        len(partners[1, other]) > 1 for other in partners[0, target] if len(partners[0, target]) > 1
    ) or any(len(partners[0, other]) > 1 for other in partners[1, source] if len(partners[1, source]) > 1)


def _look_alikes(looks: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """Yield every two places that look the same."""
    places: dict[Hashable, list[int]] = {}
    for place, look in enumerate(looks):
        places.setdefault(look, []).append(place)
    for alike in places.values():
        yield from combinations(alike, 2)


def _gain(words: Sequence[Sequence[frozenset[str]]], pairs: Iterable[tuple[int, int]]) -> int:
    """Return how many more words names share if the sources of each two places are exchanged."""
    targets, sources = words
    return sum(
        _shared(targets[a], sources[b])
        + _shared(targets[b], sources[a])
        - _shared(targets[a], sources[a])
        - _shared(targets[b], sources[b])
        for a, b in pairs
    )


def _neighbors(
    targets: Sequence[str], sources: Sequence[str], looks: Sequence[Hashable]
) -> Iterator[tuple[range, range]]:
    """Yield every two stretches that follow each other and look the same, unless numbers order them."""
    parts = [[_parts(name) for name in names] for names in (targets, sources)]
    for length in range(1, len(looks) // 2 + 1):
        alike = ordered = 0  # how many places up to here look like, and are numbered before, those further on
        for place in range(len(looks) - length):
            after = place + length
            alike = alike + 1 if looks[place] == looks[after] else 0
            ordered = ordered + 1 if all(_is_before(names[place], names[after]) for names in parts) else 0
            if alike >= length > ordered:
                start = place - length + 1
                yield range(start, start + length), range(start + length, start + 2 * length)


def _children(
    targets: Sequence[str], sources: Sequence[str], looks: Sequence[Hashable]
) -> Iterator[tuple[range, range]]:
    """Yield every two children of one target module that look the same, unless numbers order them."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(targets):
        path = name.split(".")
        for depth in range(len(path)):
            places.setdefault(".".join(path[: depth + 1]), []).append(place)
    alike: dict[Hashable, list[range]] = {}
    for child, found in places.items():
        whole = range(found[0], found[-1] + 1)
        alike.setdefault((child.rpartition(".")[0], tuple(looks[place] for place in whole)), []).append(whole)
    for ranges in alike.values():
        for here, there in combinations(ranges, 2):
            pairs = list(zip(here, there, strict=True))
            if not all(_is_before(_parts(n[a]), _parts(n[b])) for n in (targets, sources) for a, b in pairs):
                yield here, there


def role_of(leaf: str) -> tuple[str, tuple[str, ...]]:
    """Return which role the last part of a layer's name says, and its other words.

    Example:
        >>> role_of("q_proj"), role_of("value"), role_of("query_key_value")
        (('query', ('proj',)), ('value', ()), ('', ('query', 'key', 'value')))
    """
    parts = _parts(leaf)
    roles = [_ROLES[part] for part in parts if part in _ROLES]
    return (roles[0], tuple(part for part in parts if part not in _ROLES)) if len(roles) == 1 else ("", parts)


def without_numbers(name: str) -> tuple[str, ...]:
    """Return the words of a name, marked where numbers stand: ``"layer1.conv2" -> ("layer", "#", "conv", "#")``."""
    return tuple("#" if part.isdigit() else part for part in _parts(name))


def _is_before(one: Sequence[str], two: Sequence[str]) -> bool:
    """Tell whether two names differ in numbers alone, and those of the first come first."""
    words = [["#" if part.isdigit() else part for part in parts] for parts in (one, two)]
    numbers = [[int(part) for part in parts if part.isdigit()] for parts in (one, two)]
    return words[0] == words[1] and numbers[0] < numbers[1]


def _are_siblings(names: Sequence[str], here: range, there: range, sizes: Mapping[str, int]) -> bool:
    """Tell whether two stretches are whole children, each of them some, of one module."""
    paths = [[names[place].split(".") for place in places] for places in (here, there)]
    shared = 0
    while len({tuple(path[: shared + 1]) for path in paths[0] + paths[1]}) == 1:
        shared += 1
    children = [Counter(".".join(path[: shared + 1]) for path in side) for side in paths]
    whole = all(sizes[child] == count for side in children for child, count in side.items())
    return whole and not children[0].keys() & children[1].keys()


def _sizes(names: Sequence[str]) -> Counter[str]:
    """Return how many layers there are in every module, by its name."""
    sizes: Counter[str] = Counter()
    for name in names:
        path = name.split(".")
        sizes.update(".".join(path[: depth + 1]) for depth in range(len(path)))
    return sizes


@lru_cache(maxsize=4096)
def _parts(name: str) -> tuple[str, ...]:
    """Split a name into words and numbers: ``"layer1.conv_a" -> ("layer", "1", "conv", "1")``."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return tuple(_ORDINALS.get(part.lower(), part.lower()) for part in found)


@lru_cache(maxsize=4096)
def _shared(target: frozenset[str], source: frozenset[str]) -> int:
    """Return how many words of one name have a counterpart in the other."""
    return sum(any(_alike(word, other) for other in source) for word in target)


@lru_cache(maxsize=4096)
def _words(name: str) -> frozenset[str]:
    return frozenset(_ROLES.get(part, part) for part in _parts(name) if not part.isdigit())


def _alike(word: str, other: str) -> bool:
    shorter, longer = sorted((word, other), key=len)
    return word == other or (len(shorter) >= 3 and longer.startswith(shorter))


def _block(name: str) -> str:
    """Return the innermost numbered container of a layer: ``"layer1.0.downsample.0" -> "layer1.0"``."""
    parts = name.split(".")[:-1]
    while parts and not re.search(r"\d", parts[-1]):
        parts.pop()
    return ".".join(parts)
