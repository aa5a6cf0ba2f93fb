"""Random networks for :mod:`tests.transfer.identity`: their layers, and how source and target differ.

Every layer of a case plays a role, which source and target share: under the same names or others, defined in the same
order or another, tied, grouped and wrapped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# What a layer can be; several have a weight of the same shape and mean another thing by it.
KINDS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda n: nn.Linear(n, n),
    "wide": lambda n: nn.Linear(n, n + 1),
    "unbiased": lambda n: nn.Linear(n, n, bias=False),
    "table": lambda n: nn.Embedding(n, n),
    "conv": lambda n: nn.Conv2d(n, 2 * n, 3),
    "grouped": lambda n: nn.Conv2d(2 * n, 2 * n, 3, groups=2),
    "norm": nn.BatchNorm2d,
    "plain_norm": nn.LayerNorm,
}

# Words that share no beginning and mean nothing, so that no name speaks for another.
WORDS = [
    "amber", "birch", "cedar", "dune", "ember", "flint", "grove", "heath", "islet", "jade", "knoll", "larch", "moss",
    "nook", "opal", "pine", "quartz", "reed",
]  # fmt: skip
OTHER_WORDS = [
    "zinc", "yarn", "xylem", "wharf", "velvet", "umber", "talc", "sable", "ruby", "plume", "onyx", "nickel", "mica",
    "lilac", "kelp", "jute", "ivory", "hazel",
]  # fmt: skip
AWKWARD = ("module", "conv[0]", "weight")  # a wrapper's name, a glob's, a tensor's
NUMBERED = ("fc", "layer", "conv")


@dataclass(frozen=True)
class Role:
    """One layer, on both sides: what it is, and its tensors' values by whoever holds them."""

    kind: str
    width: int

    def build(self) -> nn.Module:
        return KINDS[self.kind](self.width)

    @property
    def look(self) -> tuple[Any, ...]:
        """What can be seen of it in a file: names and shapes of its tensors."""
        return tuple((key, tuple(tensor.shape)) for key, tensor in self.build().state_dict().items())


Tree = list[tuple[str, Any]]
"""Children by name, in the order of definition: each a role's number, or a tree."""


@dataclass
class Case:
    """A source, a target, and how the one is moved to the other.

    Attributes:
        names: ``"same"``, ``"renamed"``, or ``"shifted"``: numbered one further, so that they lie.
        order: ``"same"`` or ``"shuffled"``.
        form: What the source is given as: ``".pth"``, ``".safetensors"``, ``"live"`` or ``"dict"``.
        by: The mapping.
        tied: Two roles that are one weight: on both sides, or in the target alone.
        lacking: The side that lacks the ``dropped`` roles, ``"source"`` or ``"target"``.
        selected: Which of the target's layers are: ``"every"``, ``"before"`` one, or ``"some"`` without the first.
    """

    seed: int
    names: str
    order: str
    form: str
    by: str
    roles: list[Role]
    source_tree: Tree
    target_tree: Tree
    source_wrapper: str
    target_wrapper: str
    tied: tuple[str, tuple[int, int]] | None
    lacking: str
    dropped: frozenset[int]
    selected: str

    def __str__(self) -> str:
        words = {
            "names": self.names, "order": self.order, "form": self.form, "by": self.by, "tied": self.tied and self.tied[0],
            "wrapped": f"{self.source_wrapper}->{self.target_wrapper}", f"{self.lacking} lacks": sorted(self.dropped),
            "selected": self.selected,
        }  # fmt: skip
        return f"case {self.seed}: " + ", ".join(f"{key} {value}" for key, value in words.items() if value)


# Making a case.


def make_case(seed: int) -> Case:
    """Return the case of a seed."""
    rng = random.Random(seed)
    roles = [
        Role(rng.choice(list(KINDS)), rng.choice([2, 2, 2, 3])) for _ in range(rng.choice([2, 3, 4, 5, 6]))
    ]
    if rng.random() < 0.7:  # two alike at least
        roles[rng.randrange(len(roles))] = roles[0]
    names, order = rng.choice(["same", "same", "renamed", "shifted"]), rng.choice(["same", "shuffled"])
    target_tree = _tree(rng, list(range(len(roles))), WORDS, numbered=names == "shifted")
    if names == "shifted":
        order = "same"
    source_tree = target_tree
    if order == "shuffled":
        source_tree = _shuffled(rng, source_tree, roles, alike=names == "renamed")
    if names == "renamed":
        source_tree = _in_other_words(source_tree, iter(rng.sample(OTHER_WORDS, len(OTHER_WORDS))))
    if names == "shifted":
        source_tree = _shifted(source_tree)
    both = names != "same" and order == "shuffled"
    may_drop = not both and names != "shifted" and len(roles) > 2 and rng.random() < 0.25
    by = rng.choice(["name", "order", "structure", "structure", "dict"])
    wrappers = ["", "", "", "parallel", "compiled", "parent"]
    return Case(
        seed, names, order, rng.choice([".pth", ".safetensors", "live", "dict"]), by, roles, source_tree, target_tree,
        rng.choice(wrappers), rng.choice([*wrappers, "parent with a head"]), _tie(rng, roles),
        rng.choice(["source", "target"]), frozenset(rng.sample(range(len(roles)), 1)) if may_drop else frozenset(),
        rng.choice(["every", "every", "every", "before", "some"]),
    )  # fmt: skip


def _tree(rng: random.Random, places: Sequence[int], words: Sequence[str], *, numbered: bool) -> Tree:
    """Put roles under names, some of them together under one more."""
    left = rng.sample(list(words), len(words))
    if numbered:
        word = rng.choice(NUMBERED)
        return [(f"{word}{number}", place) for number, place in enumerate(places)]
    tree: Tree = []
    places = list(places)
    while places:
        count = min(len(places), rng.choice([1, 1, 1, 2, 3]))
        here, places = places[:count], places[count:]
        name = rng.choice(AWKWARD) if rng.random() < 0.05 else left.pop()
        if any(name == other for other, _ in tree):
            name = left.pop()
        if count == 1:
            tree.append((name, here[0]))
        elif rng.random() < 0.3:  # a Sequential
            tree.append((name, [(str(number), place) for number, place in enumerate(here)]))
        else:
            tree.append((name, [(left.pop(), place) for place in here]))
    return tree


def _shuffled(rng: random.Random, tree: Tree, roles: Sequence[Role], *, alike: bool) -> Tree:
    """Define the children of every module in another order, those alone that look alike if so told."""
    children = [
        (name, child if isinstance(child, int) else _shuffled(rng, child, roles, alike=alike))
        for name, child in tree
    ]
    if all(name.isdigit() for name, _ in children):  # a Sequential counts its children
        return children
    if not alike:
        return rng.sample(children, len(children))
    places: dict[Any, list[int]] = {}
    for place, (_, child) in enumerate(children):
        places.setdefault(_look(child, roles), []).append(place)
    order = list(range(len(children)))
    for same in places.values():
        for place, other in zip(same, rng.sample(same, len(same)), strict=True):
            order[place] = other
    return [children[place] for place in order]


def _look(child: Any, roles: Sequence[Role]) -> Any:
    return roles[child].look if isinstance(child, int) else tuple(_look(each, roles) for _, each in child)


def _in_other_words(tree: Tree, words: Iterator[str]) -> Tree:
    return [
        (next(words), child if isinstance(child, int) else _in_other_words(child, words)) for _, child in tree
    ]


def _shifted(tree: Tree) -> Tree:
    """Number the children one further: ``fc0, fc1, fc2`` become ``fc1, fc2, fc3``."""
    return [(f"{name.rstrip('0123456789')}{place + 1}", child) for place, (name, child) in enumerate(tree)]


def _tie(rng: random.Random, roles: Sequence[Role]) -> tuple[str, tuple[int, int]] | None:
    if rng.random() > 0.25:
        return None
    weights = [tuple(role.build().weight.shape) for role in roles]
    pairs = [(a, b) for a in range(len(roles)) for b in range(a) if weights[a] == weights[b]]
    return (rng.choice(["both", "both", "target"]), rng.choice(pairs)) if pairs else None


def without(tree: Tree, roles: frozenset[int]) -> Tree:
    """Return a tree without some roles, and without what is empty then."""
    kept = [
        (name, child if isinstance(child, int) else without(child, roles))
        for name, child in tree
        if not (isinstance(child, int) and child in roles)
    ]
    return [(name, child) for name, child in kept if child != []]


def trees_of(case: Case) -> tuple[Tree, Tree]:
    """Return the source's tree and the target's, without what either lacks."""
    sides = (("source", case.source_tree), ("target", case.target_tree))
    return tuple(without(tree, case.dropped) if side == case.lacking else tree for side, tree in sides)  # type: ignore[return-value]


def order_of(tree: Tree) -> list[int]:
    """Return the roles in the order of definition."""
    return [role for _, child in tree for role in ([child] if isinstance(child, int) else order_of(child))]


# What must come of it.


def same_names(case: Case) -> bool:
    """Tell whether every layer goes by the same name on both sides."""
    return case.names == "same" and (case.source_wrapper == "parent") == (
        case.target_wrapper.startswith("parent")
    )


def must_be(case: Case) -> str:
    """Return what must come of a case: ``right`` where all is said, ``refused`` where nothing tells, else either."""
    source, target = (order_of(tree) for tree in trees_of(case))
    whole = not case.dropped and case.selected == "every" and case.target_wrapper != "parent with a head"
    if (case.tied and case.tied[0] == "target") or "module" in str(case.target_tree):
        return ""
    if case.by == "dict" or (case.by == "name" and case.names == "same"):
        return "" if case.dropped and case.selected != "every" else "right"
    if case.by == "order" and whole:
        if case.form == ".safetensors":
            return "" if same_names(case) else "refused"
        if source == target:
            return "" if case.names == "shifted" else "right"
        return "refused" if same_names(case) else ""
    if case.by == "structure" and case.names == "renamed" and source != target and whole:
        return "refused"
    return ""
