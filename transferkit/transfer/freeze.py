"""Freeze and unfreeze layers by the rules that also select them for transfer.

A frozen layer is not trained. A frozen norm layer also keeps its running statistics: it stays in evaluation
mode when the model is put into training mode, since statistics that drift change what fixed weights compute.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from transferkit.layers import Layer
from transferkit.transfer.rules import every
from transferkit.transfer.select import Predicate, select_layers
from transferkit.transfer.target import Target


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
        >>> from transferkit.transfer.rules import by_kind
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
