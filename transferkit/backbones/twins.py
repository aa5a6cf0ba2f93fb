"""A module changed in some places without changing it: what is on the way is new, everything else is shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def twin(module: nn.Module) -> nn.Module:
    """Return the same module, its tensors and children shared, with lists of children and hooks of its own."""
    same = with_hooks_of(module, copy.copy(module))
    same.__dict__["_modules"] = copy.copy(module._modules)
    return same


def with_hooks_of(module: nn.Module, other: AnyModule) -> AnyModule:
    """Give ``other``, which is to stand where ``module`` stands, the hooks that are called there; return it."""
    for own, value in vars(module).items():
        if own.endswith(("_hooks", "_hooks_with_kwargs")):
            other.__dict__[own] = copy.copy(value)
    return other


def with_changes(module: nn.Module, changes: Mapping[str, nn.Module]) -> nn.Module:
    """Return the module with others in the places named; the module itself is left as it was.

    Args:
        module: Any module.
        changes: What stands there instead, by dotted name; none of the names inside another.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
        >>> changed = with_changes(net, {"0.0": nn.Identity()})
        >>> changed[0][0], net[0][0], changed[1] is net[1]
        (Identity(), Linear(in_features=2, out_features=2, bias=True), True)
    """
    if "" in changes:
        return changes[""]
    below: dict[str, dict[str, nn.Module]] = {}
    for name, other in changes.items():
        child, _, rest = name.partition(".")
        below.setdefault(child, {})[rest] = other
    same = twin(module)
    for child, inner in below.items():
        same._modules[child] = with_changes(module.get_submodule(child), inner)
    return same
