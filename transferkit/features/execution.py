"""In which order a model's modules run, and what they give: found by running it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.features.pooling import POOLINGS


@dataclass(frozen=True)
class Step:
    """A module that came to its end.

    Attributes:
        name: Its dotted name.
        module: Itself.
        leaf: Whether it is one of those that a model is made of: it has no children, or parameters of its own.
        pooled: Whether the last thing done in it was a pooling, or nothing but passing on.
        is_map: Whether its output is a map (B, C, h, w) of more than one row and column.
    """

    name: str
    module: nn.Module
    leaf: bool
    pooled: bool
    is_map: bool


def execution_of(model: nn.Module, example: Tensor) -> list[Step]:
    """Return the modules of a model, itself left out, in the order in which they end; in evaluation mode.

    Args:
        model: Left as it was.
        example: An input that it takes.
    """
    steps: list[Step] = []
    names = {module: name for name, module in model.named_modules() if name}
    leaves = _leaves(model)

    def note(module: nn.Module, args: Any, output: Any) -> None:
        leaf = module in leaves
        pooled = isinstance(module, POOLINGS) if leaf else bool(steps) and steps[-1].pooled
        is_map = isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1
        steps.append(Step(names[module], module, leaf, pooled, is_map))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with evaluating(model):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return steps


def _leaves(module: nn.Module) -> set[nn.Module]:
    """Return the modules below one that have no children, or parameters of their own; none inside another."""
    found: set[nn.Module] = set()
    for child in module.children():
        inner = _leaves(child) if not child._parameters else set()
        found |= inner or {child}
    return found


@contextmanager
def evaluating(*parts: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, without gradients; leave each as it was."""
    modules = [module for part in parts for module in part.modules()]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training
