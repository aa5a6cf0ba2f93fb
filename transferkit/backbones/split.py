"""Split a model: the backbone that patches share, the pooling that each patch has alone, and the part to train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones.surgery import evaluating, logits_of, replace_submodules
from transferkit.backbones.truncation import truncate
from transferkit.errors import ArgumentError

POOLINGS = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LPPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
)
"""Modules that pool or pass on their input, as dropout does in evaluation mode."""


def split_pooling(backbone: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split the poolings off the end of a sequential backbone; any other backbone is returned whole.

    A pooling reads a map that was itself read between cells, at a patch's true place, and so picks its maxima
    where the network would. Done on the whole image's map it would put the patch on a grid twice as coarse.

    Returns:
        The backbone without them, and them; modules of the given one, not copies.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2))
        >>> split_pooling(net)[1]
        Sequential(
          (0): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
        )
    """
    if not isinstance(backbone, nn.Sequential):
        return backbone, nn.Identity()
    modules = list(backbone)
    end = len(modules)
    while end > 1 and isinstance(modules[end - 1], POOLINGS):
        end -= 1
    return nn.Sequential(*modules[:end]), nn.Sequential(*modules[end:])


# The order in which a model's modules run, and their outputs, found by running it once.


@dataclass(frozen=True)
class Step:
    """A module whose forward has ended.

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


@dataclass(frozen=True, eq=False)
class SplitModel:
    """A model in three parts, ``rest(pool(backbone(pixels)))``, which share its parameters.

    Attributes:
        backbone: Maps normalized pixels to the last map before a pooling; where no map leads to them, as in a
            transformer, to the features themselves: a class token, or the mean of all.
        pool: Maps that to what enters the rest.
        rest: Maps that to logits, in training and in evaluation as the model does.
        boundary: Name of the first module of the rest.
    """

    backbone: nn.Module
    pool: nn.Module
    rest: nn.Module
    boundary: str


class UnsplittableError(ArgumentError):
    """A model's frozen part cannot be run apart from the rest."""


def split_frozen(model: nn.Module, example: Tensor) -> SplitModel:
    """Split a model where its training begins: at the first module, in the order in which they run, that
    changes or is random in training.

    That is one with a parameter that takes a gradient, dropout, or a norm layer that follows its minibatches.
    All before it computes the same in every epoch. The parts are put together and compared with the model, in
    both modes.

    Args:
        model: Some of its layers frozen (:func:`~transferkit.freeze`); left as it was.
        example: Normalized pixels (B, 3, S, S) that it takes, random ones best: they tell right splits from
            wrong.

    Raises:
        UnsplittableError: Nothing is frozen before what is trained, nothing is trained, or the model's forward
            cannot be taken apart there; says why.

    Example:
        >>> from transferkit.alexnet import AlexNet
        >>> from transferkit.transfer import before, freeze
        >>> net = AlexNet(5, channels=(4, 4, 4, 4, 4), hidden=8)
        >>> _ = freeze(net, before("classifier.1"))
        >>> parts = split_frozen(net, torch.randn(2, 3, 64, 64))
        >>> parts.boundary, parts.pool(parts.backbone(torch.zeros(1, 3, 64, 64))).shape
        ('classifier.0', torch.Size([1, 144]))
    """
    steps = execution_of(model, example)
    changing = [place for place, step in enumerate(steps) if step.leaf and _changes(step.module)]
    if not changing:
        raise UnsplittableError(f"nothing in {type(model).__name__} is trained, so there is nothing to split")
    trained_late = {
        id(parameter) for step in steps[changing[0] :] if step.leaf for parameter in step.module.parameters()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in trained_late:
            raise UnsplittableError(
                f"{name!r} of {type(model).__name__} is trained and belongs to no layer that runs from "
                f"{steps[changing[0]].name!r} on; freeze it too"
            )
    return _split(model, example, steps, changing[0], trains=True)


def split_at_head(model: nn.Module, example: Tensor) -> SplitModel:
    """Split a model behind its last map: what comes after is its head, whatever is frozen. Not for training.

    Args:
        model: Left as it was.
        example: As for :func:`split_frozen`.

    Raises:
        UnsplittableError: It has no map, nothing after it, or its forward cannot be taken apart there.
    """
    steps = execution_of(model, example)
    maps = [place for place, step in enumerate(steps) if step.is_map]
    after = [
        place
        for place in range(maps[-1] + 1 if maps else len(steps), len(steps))
        if steps[place].leaf and not steps[place].pooled
    ]
    if not after:
        raise UnsplittableError(f"{type(model).__name__} has no layer behind a map (B, C, h, w)")
    return _split(model, example, steps, after[0], trains=False)


def _split(model: nn.Module, example: Tensor, steps: list[Step], boundary: int, trains: bool) -> SplitModel:
    name, kind = steps[boundary].name, type(model).__name__
    with evaluating(model):
        features = truncate(model, before=name)(example)
        logits = logits_of(model(example))
    last_map = next((place for place in range(boundary - 1, -1, -1) if _ends_backbone(steps, place)), None)
    found = (
        None if last_map is None else _map_and_pool(model, example, steps[:boundary], last_map, name, features)
    )
    if (
        found is None and features.ndim == 2 and boundary
    ):  # a class token, or a mean: no map leads to it by itself
        found = truncate(model, before=name, example=example), nn.Identity()
    if found is None and last_map is None:
        raise UnsplittableError(
            f"{kind} is trained from {name!r} on, and no map (B, C, h, w) is frozen before that"
        )
    rests = (
        lambda: _without(model, steps, boundary - 1),
        lambda: nn.Sequential(*(step.module for step in steps[boundary:] if step.leaf)),
    )
    rest = None if found is None else _first_equal(rests, features, logits)
    if found is None or rest is None:
        raise UnsplittableError(
            f"the forward of {kind} cannot be taken apart before {name!r}: its modules alone, run one after "
            "the other, give something else; put the frozen part into a module of its own"
        )
    if trains and not _trains_alike(model, rest, example, features):
        raise UnsplittableError(
            f"the forward of {kind} cannot be taken apart before {name!r}: in training its modules alone give "
            "something else; if that is frozen stochastic depth, freeze(model, ..., dropout=False) ends it"
        )
    return SplitModel(*found, rest, name)


def _map_and_pool(
    model: nn.Module, example: Tensor, steps: list[Step], last_map: int, name: str, features: Tensor
) -> tuple[nn.Module, nn.Module] | None:
    """Return the model up to its last map, and what leads from there to the features, if the two go together."""
    # With an example, later layers are left out, so that no trained layer is part of the frozen backbone.
    backbone = truncate(model, steps[last_map].name, example=example)
    with evaluating(backbone):
        maps = backbone(example)
    pools = (
        lambda: truncate(_without(model, steps, last_map), before=name, example=maps),
        lambda: nn.Sequential(*(step.module for step in steps[last_map + 1 :] if step.leaf), nn.Flatten()),
    )
    pool = _first_equal(pools, maps, features)
    return None if pool is None else (backbone, pool)


def _changes(module: nn.Module) -> bool:
    """Tell whether a module without children changes in training, or is random there."""
    if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
        return True
    if "train" in vars(module):  # what freeze keeps in evaluation mode has a train of its own
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return getattr(module, "running_mean", None) is not None


def _ends_backbone(steps: list[Step], place: int) -> bool:
    """Tell whether a backbone may end with a module: one that runs once, gives a map, and does not end on a
    pooling.
    """
    step = steps[place]
    once = sum(other.module is step.module for other in steps) == 1
    return once and step.is_map and not step.pooled


def _without(model: nn.Module, steps: list[Step], last: int) -> nn.Module:
    """Return the model with all modules that came to their end by ``last``, and do not run again, passed
    through.
    """
    after = {step.name for step in steps[last + 1 :]}
    ended = {step.name for step in steps[: last + 1] if step.name not in after}
    outermost = [name for name in ended if not any(name.startswith(f"{other}.") for other in ended)]
    return replace_submodules(model, {name: nn.Identity() for name in outermost})


def _first_equal(
    makers: Iterable[Callable[[], nn.Module]], given: Tensor, expected: Tensor
) -> nn.Module | None:
    """Return the first module that gives what is expected."""
    for make in makers:
        try:
            module = make()
            with evaluating(module):
                found = logits_of(module(given.clone()))  # some write over their input
        except Exception:  # whatever a module raises for what it was not made for
            continue
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            return module
    return None


def _trains_alike(model: nn.Module, rest: nn.Module, example: Tensor, features: Tensor) -> bool:
    """Tell whether copies of the model and of the rest give the same in training, with the same random
    numbers.
    """
    model, rest = copy.deepcopy((model, rest))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        expected = logits_of(model.train()(example))
        torch.manual_seed(0)
        found = logits_of(rest.train()(features))
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
