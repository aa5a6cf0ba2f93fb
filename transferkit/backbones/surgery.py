"""Surgery on modules: evaluate them, copy them with submodules replaced, and find the tensor in an output."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from transferkit.errors import ArgumentError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, without gradients; leave each of their modules as it was.

    Example:
        >>> net = nn.Sequential(nn.Dropout())
        >>> with evaluating(net):
        ...     print(net[0].training)
        False
        >>> net[0].training
        True
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# Copies that share: only the modules on the way to a change are new.


def shallow_copy(module: nn.Module) -> nn.Module:
    """Return a copy that shares tensors and children, and has its own lists of children and hooks."""
    same = with_hooks_of(module, copy.copy(module))
    same.__dict__["_modules"] = copy.copy(module._modules)
    for own, value in vars(module).items():
        if isinstance(value, partial) and value.args == (module,):  # what freeze puts in the place of train
            same.__dict__[own] = partial(value.func, same)
    return same


def with_hooks_of(module: nn.Module, other: AnyModule) -> AnyModule:
    """Copy a module's hooks to the one that takes its place; return that."""
    for own, value in vars(module).items():
        if own.endswith(("_hooks", "_hooks_with_kwargs")):
            other.__dict__[own] = copy.copy(value)
    return other


def replace_submodules(module: nn.Module, changes: Mapping[str, nn.Module]) -> nn.Module:
    """Replace submodules in a copy that shares all other modules.

    Args:
        module: Left as it was.
        changes: The new submodules by dotted name; no name lies inside another.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU())
        >>> changed = replace_submodules(net, {"0.0": nn.Identity()})
        >>> changed[0][0], net[0][0], changed[1] is net[1]
        (Identity(), Linear(in_features=2, out_features=2, bias=True), True)
    """
    if "" in changes:
        return changes[""]
    below: dict[str, dict[str, nn.Module]] = {}
    for name, other in changes.items():
        child, _, rest = name.partition(".")
        below.setdefault(child, {})[rest] = other
    same = shallow_copy(module)
    for child, inner in below.items():
        same._modules[child] = replace_submodules(module.get_submodule(child), inner)
    return same


# The one tensor that is meant in a model's output, which may hold several.


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Args:
        output: A tensor; an object, dict or named tuple with ``logits``, as Hugging Face's models return, and
            torchvision's Inception and GoogLeNet in training; or something with one tensor in it.

    Raises:
        ArgumentError: There are several tensors and none is called logits, as with a distilled DeiT in training.

    Example:
        >>> import torch
        >>> logits_of({"logits": torch.zeros(2, 21), "hidden_states": None}).shape
        torch.Size([2, 21])
    """
    return _tensor_in(output, ("logits",))


def features_of(output: Any) -> Tensor:
    """Return the features in the output of a model without a head, or of a layer: pooled ones before maps.

    Args:
        output: A tensor, or an object or dict with ``pooler_output`` or ``last_hidden_state``, as Hugging Face's
            models return.

    Raises:
        ArgumentError: There are several tensors, and none has one of these names.

    Example:
        >>> import torch
        >>> features_of({"last_hidden_state": torch.zeros(2, 512, 7, 7), "pooler_output": None}).shape
        torch.Size([2, 512, 7, 7])
    """
    return _tensor_in(output, ("pooler_output", "last_hidden_state"))


def _tensor_in(output: Any, names: tuple[str, ...]) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    values = list(output.values() if isinstance(output, Mapping) else output) if _holds_many(output) else []
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "none"
    raise ArgumentError(
        f"the model must return one tensor or one called {' or '.join(names)}, got a {type(output).__name__} with "
        f"tensors of shapes: {shapes}; a model with several heads needs to be told which one to use"
    )


def _holds_many(output: Any) -> bool:
    return isinstance(output, Mapping | tuple | list)
