"""Find the head of a model, and put another in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from transferkit.errors import ArgumentError, LayerNotFoundError, did_you_mean


class Head(NamedTuple):
    """Where a model's head is: its dotted name, the module, and the width of the features that it takes."""

    name: str
    module: nn.Module
    in_features: int


def find_head(model: nn.Module, name: str | None = None) -> Head:
    """Find the classification layer: the last linear layer in definition order, or the one named.

    Args:
        model: Any module.
        name: Dotted name, where the last linear layer is not the one. It may name a container: its first linear
            layer then tells the width.

    Raises:
        LayerNotFoundError: No module has that name (the nearest are offered), or there is no linear layer.
    """
    modules = dict(model.named_modules())
    if name is not None and name not in modules:
        raise LayerNotFoundError(
            f"no module named {name!r} in {type(model).__name__}{did_you_mean(name, modules)}"
        )
    if name is None:
        linears = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
        if not linears:
            raise LayerNotFoundError(
                f"{type(model).__name__} has no linear layer to call its head; name the module to replace"
            )
        name = linears[-1]
    inner = [module for module in modules[name].modules() if isinstance(module, nn.Linear)]
    if not inner:
        raise LayerNotFoundError(
            f"{name!r} is a {type(modules[name]).__name__} without a linear layer, so the width of its input "
            "is not known; name the linear layer itself"
        )
    return Head(name, modules[name], inner[0].in_features)


def replace_head(
    model: nn.Module, head: nn.Module | Callable[[int], nn.Module], *, name: str | None = None
) -> Head:
    """Put ``head`` where the model's head is, in place, on the same device and in the same dtype.

    Args:
        model: Any module; changed in place.
        head: The new head, or a function of ``in_features`` that builds it.
        name: Dotted name of the module to replace; the last linear layer unless given.

    Returns:
        The new head: name, module, ``in_features``.

    Raises:
        LayerNotFoundError: As :func:`find_head`.
        ArgumentError: The new head's first linear layer takes another width than the features have.

    Example:
        >>> from transferkit.heads import linear_head
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1000))
        >>> replace_head(net, lambda width: linear_head(width, 21))
        Head(name='3', module=Linear(in_features=8, out_features=21, bias=True), in_features=8)
    """
    old = find_head(model, name)
    new = head if isinstance(head, nn.Module) else head(old.in_features)
    takes = next((module.in_features for module in new.modules() if isinstance(module, nn.Linear)), None)
    if takes is not None and takes != old.in_features:
        raise ArgumentError(
            f"the new head takes {takes} features and {old.name!r} of {type(model).__name__} is given "
            f"{old.in_features}; build the head with in_features={old.in_features}"
        )
    if old.name == "":
        raise ArgumentError("the model is itself one linear layer; use the new head in its place")
    weight = next(old.module.parameters())
    new.to(device=weight.device, dtype=weight.dtype)
    parent, _, attribute = old.name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
    return Head(old.name, new, old.in_features)
