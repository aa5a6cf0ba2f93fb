"""Random networks in which nothing but values tells who is who, moved every way, and what became of each tensor.

Every layer of a case plays a role, and the tensors of each role have values of their own. Source and target have the
same roles: under the same names or others, defined in the same order or another, tied, grouped, wrapped, frozen. So
what a target's tensor holds after a transfer tells which role it was taken from: its own (right), another's (wrong).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

import transferkit as tk
from transferkit.transfer import TransferReport, WeightTransfer

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
    "amber",
    "birch",
    "cedar",
    "dune",
    "ember",
    "flint",
    "grove",
    "heath",
    "islet",
    "jade",
    "knoll",
    "larch",
    "moss",
    "nook",
    "opal",
    "pine",
    "quartz",
    "reed",
]
OTHER_WORDS = [
    "zinc",
    "yarn",
    "xylem",
    "wharf",
    "velvet",
    "umber",
    "talc",
    "sable",
    "ruby",
    "plume",
    "onyx",
    "nickel",
    "mica",
    "lilac",
    "kelp",
    "jute",
    "ivory",
    "hazel",
]
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


class Outcome(NamedTuple):
    """What came of a case: ``right``, ``refused``, ``user's word`` or ``wrong``, and why."""

    what: str
    why: str = ""


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


# Building the two sides of it.


@dataclass
class Side:
    """A model, and its layers by role: their dotted names in the bare model, and the modules."""

    model: nn.Module
    names: dict[int, str]
    modules: dict[int, nn.Module]


def build_side(case: Case, tree: Tree, *, seed: int, tied: bool) -> Side:
    """Build a model of a tree with values of its own."""
    found: dict[int, str] = {}

    def module(children: Tree, prefix: str) -> nn.Module:
        owner = nn.Module()
        for name, child in children:
            path = f"{prefix}{name}"
            if isinstance(child, int):
                found[child] = path
                owner.add_module(name, case.roles[child].build())
            else:
                owner.add_module(name, module(child, f"{path}."))
        return owner

    model = module(tree, "")
    modules = dict(model.named_modules())
    side = Side(model, found, {role: modules[name] for role, name in found.items()})
    if tied and case.tied:
        one, other = case.tied[1]
        if one in side.modules and other in side.modules:
            side.modules[one].weight = side.modules[other].weight
    fill(model, seed)
    return side


def fill(model: nn.Module, seed: int) -> None:
    """Give every tensor values that no other has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.copy_(torch.randint(1 << 40, tensor.shape, generator=generator))


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


def wrapped(model: nn.Module, wrapper: str) -> nn.Module:
    """Put a model into what training puts it into."""
    if wrapper == "parallel":
        return nn.DataParallel(model)
    if wrapper == "compiled":
        return torch.compile(model, backend="eager")
    if wrapper == "parent":
        return nn.ModuleDict({"inner": model})
    if wrapper == "parent with a head":
        return nn.ModuleDict({"inner": model, "head": nn.Linear(5, 7)})
    return model


def given(case: Case, source: Side, folder: Path) -> Any:
    """Return the source as the case gives it."""
    model = wrapped(source.model, case.source_wrapper)
    if case.form == "live":
        return model
    if case.form == "dict":
        return model.state_dict()
    path = folder / f"source{case.form}"
    if case.form == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_model(model, str(path))
    return path


def mapping_of(case: Case, source: Side, target: Side) -> Any:
    """Return the mapping: for ``"dict"`` every name with its counterpart, and for a parent the rule that names it."""
    here = "inner." if case.target_wrapper.startswith("parent") else ""
    there = "inner." if case.source_wrapper == "parent" else ""
    if case.by == "dict":
        return {f"{here}{name}": f"{there}{source.names[role]}" for role, name in target.names.items()
                if role in source.names}  # fmt: skip
    if case.by == "name" and case.names == "same" and here != there:
        return {f"{here}*": f"{there}*"}
    return case.by


# Running it, and the truth about it.


def run_case(case: Case, folder: Path) -> Outcome:
    """Move the case's source to its target and say what came of it."""
    source_tree, target_tree = trees_of(case)
    source = build_side(case, source_tree, seed=1, tied=case.tied is not None and case.tied[0] == "both")
    target, old_side = (build_side(case, target_tree, seed=2, tied=case.tied is not None) for _ in range(2))
    model = wrapped(target.model, case.target_wrapper)
    rng = random.Random(case.seed)
    frozen_before = _freeze_some(model, rng) if rng.random() < 0.3 else ""
    old = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainable = {id(p): p.requires_grad for p in model.parameters()}
    chosen, rule = _selection(case, target, model)
    allowed = _allowed(case, target, model)
    try:
        report = WeightTransfer(
            given(case, source, folder),
            select=rule,
            mapping=mapping_of(case, source, target),
            allow_missing=allowed,
        ).apply(model)
    except tk.TransferKitError as error:
        now = model.state_dict()
        if not all(torch.equal(now[key], tensor) for key, tensor in old.items()):
            return Outcome("wrong", f"refused and changed: {error}")
        return Outcome("wrong", frozen_before) if frozen_before else Outcome("refused", str(error))
    if frozen_before:
        return Outcome("wrong", frozen_before)
    problem = next(_wrongs(case, source, target, chosen, old_side), "")
    if not problem and any(p.requires_grad != trainable[id(p)] for p in model.parameters()):
        problem = "the transfer changed what is trainable"
    if not problem:
        problem = _groups(case, report, model, target, source, rng)
    if problem and _users_word(case):
        return Outcome("user's word", problem)
    return Outcome("wrong", problem) if problem else Outcome("right")


def _selection(case: Case, target: Side, model: nn.Module) -> tuple[set[int], Any]:
    """Return the selected roles, and the rule that selects them."""
    by_module = {id(module): role for role, module in target.modules.items()}
    layers = tk.layers_of(model)
    order = [by_module[id(layer.module)] for layer in layers if id(layer.module) in by_module]
    if case.selected == "every" or len(order) < 2:
        return set(order), None
    count = random.Random(case.seed).randrange(1, len(order))
    chosen = set(order[:count]) if case.selected == "before" else set(order[1 : count + 1])
    return chosen, lambda index, layer: by_module.get(id(layer.module)) in chosen


def _allowed(case: Case, target: Side, model: nn.Module) -> Any:
    """Return the rule for what the source need not have: a new head, and the roles that were dropped."""
    left = {id(module) for role, module in target.modules.items() if role in case.dropped}
    left |= {id(model["head"])} if case.target_wrapper == "parent with a head" else set()
    if not left:
        return None
    return lambda index, layer: id(layer.module) in left


def _wrongs(case: Case, source: Side, target: Side, chosen: set[int], old: Side) -> Iterator[str]:
    """Say which tensors hold what they should not."""
    tied = set(case.tied[1]) if case.tied else set()
    for role, module in target.modules.items():
        for short, tensor in module.state_dict().items():
            roles = tied if role in tied and short == "weight" else {role}
            was = old.modules[role].state_dict()[short]
            rights = [source.modules[r].state_dict()[short] for r in roles & chosen if r in source.modules]
            if not rights:
                if not torch.equal(tensor, was):
                    yield f"{target.names[role]}.{short} was not to change and holds {_whose(tensor, source)}"
            elif not any(torch.equal(tensor, right) for right in rights):
                held = "its own old value" if torch.equal(tensor, was) else _whose(tensor, source)
                yield f"{target.names[role]}.{short} holds {held}, not {source.names.get(role)}'s"


def _whose(tensor: Tensor, source: Side) -> str:
    return next(
        (
            f"{source.names[role]}.{short}"
            for role, module in source.modules.items()
            for short, value in module.state_dict().items()
            if value.shape == tensor.shape and torch.equal(value, tensor)
        ),
        "what is in neither",
    )


def _users_word(case: Case) -> bool:
    """Tell whether the user said so: by names that lie, by order under other names, or from a place of his own."""
    by_order = case.by == "order" and case.form != ".safetensors"
    return (case.by == "name" and case.names == "shifted") or (
        by_order and (not same_names(case) or case.selected == "some")
    )


# What training does next: freezing, another wrapper, a new head, parameter groups.


def _freeze_some(model: nn.Module, rng: random.Random) -> str:
    """Freeze a layer by its name; say if anything else is frozen then, or it is not."""
    layers, before = tk.layers_of(model), {id(p): p.requires_grad for p in model.parameters()}
    layer = rng.choice(layers)
    try:
        frozen = tk.freeze(model, tk.by_name(layer.name))
    except tk.TransferKitError:  # names are bare where a rule looks at them
        frozen = tk.freeze(model, tk.by_index(layer.index))
    own = {id(tensor) for tensor in layer.tensors.values()}
    if len(frozen) != 1:
        return f"froze {frozen} for {layer.name}"
    wrong = [
        name for name, p in model.named_parameters() if p.requires_grad != (before[id(p)] and id(p) not in own)
    ]
    return f"freezing {layer.name}: {wrong}" if wrong else ""


def _groups(
    case: Case,
    report: TransferReport,
    model: nn.Module,
    target: Side,
    source: Side,
    rng: random.Random,
) -> str:
    """Say what parameter groups get wrong after the model was changed as training changes it."""
    values = [tensor for module in source.modules.values() for tensor in module.parameters()]
    moved = {id(p) for p in model.parameters() if any(p.shape == v.shape and torch.equal(p, v) for v in values)}
    role = rng.choice(list(target.modules))
    if rng.random() < 0.4:  # a new layer under an old name
        parent, _, leaf = target.names[role].rpartition(".")
        target.model.get_submodule(parent).add_module(leaf, case.roles[role].build())
    if rng.random() < 0.4:
        model = wrapped(model, rng.choice(["parallel", "parent", "parent with a head"]))
    if rng.random() < 0.3 and len(tk.layers_of(model)) > 1 and (problem := _freeze_some(model, rng)):
        return problem
    expected = {id(p): id(p) in moved for p in model.parameters() if p.requires_grad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            groups = report.parameter_groups(model, transferred={"lr": 1.0}, new={"lr": 2.0})
    except tk.TransferKitError as error:
        held = any(id(p) in moved for p in model.parameters())
        return f"no groups: {error}" if expected and held else ""
    found = {id(p): group["lr"] == 1.0 for group in groups for p in group["params"]}
    return "" if found == expected else "parameter groups take transferred for new, or new for transferred"


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
