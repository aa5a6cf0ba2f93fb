"""Freeze and unfreeze layers by the rules that also select them, and give the rest their own learning rates.

A frozen layer is not trained. A frozen norm layer also keeps its running statistics: it stays in evaluation
mode when the model is put into training mode, since statistics that drift change what fixed weights compute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from torch import nn

from transferkit.errors import ArgumentError
from transferkit.layers import Layer
from transferkit.transfer._target import Target
from transferkit.transfer.select import Predicate, every, select_layers


def freeze(model: nn.Module, select: Predicate | None = None) -> tuple[str, ...]:
    """Freeze layers: their parameters take no gradient, and norm layers keep their statistics in training mode.

    Args:
        model: Any module; changed in place.
        select: Which layers; all of them unless given.

    Returns:
        The names of the frozen layers, for :func:`by_name` after a reload.

    Raises:
        SelectionError: A rule matches nothing.

    Example:
        >>> from transferkit.transfer.select import by_kind
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2))
        >>> freeze(net, by_kind("norm"))
        ('1',)
        >>> net.train()[1].training
        False
    """
    chosen = _chosen(model, select)
    for layer in chosen:
        _set_requires_grad(layer, False)
        module = layer.module
        if module is not None and _has_statistics(module):
            module.eval()
            # An attribute of the one module: copies and pickles of the model stay frozen, and no forward hook
            # stands in the way of torch.compile.
            module.train = partial(_stay_in_evaluation, module)  # type: ignore[method-assign]
    return tuple(layer.name for layer in chosen)


def unfreeze(model: nn.Module, select: Predicate | None = None) -> tuple[str, ...]:
    """Undo :func:`freeze`: parameters take gradients again, and norm layers follow the model's mode.

    Args:
        model: Any module; changed in place.
        select: Which layers; all of them unless given.

    Returns:
        The names of the unfrozen layers.

    Raises:
        SelectionError: A rule matches nothing.
    """
    chosen = _chosen(model, select)
    for layer in chosen:
        _set_requires_grad(layer, True)
        module = layer.module
        if module is not None and "train" in module.__dict__:
            del module.__dict__["train"]
            module.train(model.training)
    return tuple(layer.name for layer in chosen)


def frozen_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that could learn and do not: no gradient, and no statistics that move."""
    return tuple(layer.name for layer in Target.of(model).layers if _is_frozen(layer))


def _chosen(model: nn.Module, select: Predicate | None) -> list[Layer]:
    layers = Target.of(model).layers
    return [layers[place] for place in select_layers(every() if select is None else select, layers).indices]


def _set_requires_grad(layer: Layer, value: bool) -> None:
    for tensor in layer.tensors.values():
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(value)


def _has_statistics(module: nn.Module) -> bool:
    return getattr(module, "running_mean", None) is not None


def _is_frozen(layer: Layer) -> bool:
    module = layer.module
    if module is not None and _has_statistics(module) and "train" not in module.__dict__:
        return False
    parameters = [tensor for tensor in layer.tensors.values() if isinstance(tensor, nn.Parameter)]
    learns = bool(parameters) or (module is not None and _has_statistics(module))
    return learns and not any(parameter.requires_grad for parameter in parameters)


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for ``module.train``: a frozen norm layer has one mode."""
    return module


# Parameter groups for an optimizer: transferred and new layers at their own learning rates.


def parameter_groups(
    model: nn.Module,
    moved: Collection[nn.Parameter],
    *,
    transferred: Mapping[str, Any],
    new: Mapping[str, Any],
    decay_biases_and_norms: bool = True,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups; each stands in exactly one, frozen ones in none.

    Args:
        model: The model that was transferred to.
        moved: The parameters that were transferred.
        transferred: Options of the groups of transferred parameters, ``{"lr": 1e-5}``.
        new: Options of the groups of all others.
        decay_biases_and_norms: ``False`` puts biases and the parameters of norm layers into groups of their own
            with ``weight_decay`` 0.

    Returns:
        Up to four groups with ``params``, ``name`` and the options; empty ones are left out.

    Raises:
        ArgumentError: Nothing in the model is trainable.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> groups = parameter_groups(net, [*net[0].parameters()], transferred={"lr": 1e-5}, new={"lr": 1e-3})
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('transferred', 1e-05, 2), ('new', 0.001, 2)]
    """
    options, old = {"transferred": dict(transferred), "new": dict(new)}, {id(parameter) for parameter in moved}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    seen: set[int] = set()
    for layer in Target.of(model).layers:
        for short, tensor in layer.tensors.items():
            if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = "transferred" if id(tensor) in old else "new"
            decayed = decay_biases_and_norms or not _is_bias_or_norm(layer, short)
            groups.setdefault((name, decayed), {"params": []})["params"].append(tensor)
    if not groups:
        raise ArgumentError(
            "no parameter of the model is trainable; unfreeze(model, ...) what is to be trained"
        )
    return [
        {**group, **options[name], "name": name}
        if decayed
        else {**group, **options[name], "name": f"{name}, no decay", "weight_decay": 0.0}
        for (name, decayed), group in sorted(
            groups.items(), key=lambda item: (item[0][0] == "new", not item[0][1])
        )
    ]


def _is_bias_or_norm(layer: Layer, short: str) -> bool:
    return layer.kind == "norm" or short.rpartition(".")[2].startswith("bias")
