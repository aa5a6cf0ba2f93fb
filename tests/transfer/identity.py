"""Random networks in which nothing but values tells who is who, moved every way, and what became of each tensor.

Every layer of a case plays a role, and the tensors of each role have values of their own. Source and target have the
same roles: under the same names or others, defined in the same order or another, tied, grouped, wrapped, frozen. So
what a target's tensor holds after a transfer tells which role it was taken from: its own (right), another's (wrong).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

import transferkit as tk
from tests.transfer.identity_cases import Case, Tree, same_names, trees_of
from transferkit.transfer import TransferReport, WeightTransfer


class Outcome(NamedTuple):
    """What came of a case: ``right``, ``refused``, ``user's word`` or ``wrong``, and why."""

    what: str
    why: str = ""


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
    crossed = next(_wrongs(case, source, target, chosen, old_side), "")
    if crossed and _users_word(case):
        return Outcome("user's word", crossed)
    problem = crossed or _changed(model, trainable) or _groups(case, report, model, target, source, rng)
    return Outcome("wrong", problem) if problem else Outcome("right")


def _changed(model: nn.Module, trainable: Mapping[int, bool]) -> str:
    return (
        "the transfer changed what is trainable"
        if any(p.requires_grad != trainable[id(p)] for p in model.parameters())
        else ""
    )


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
