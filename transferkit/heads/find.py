"""Find the head of a model, and put another in its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from torch import nn

from transferkit.errors import ArgumentError, LayerNotFoundError, did_you_mean
from transferkit.heads.build import PerPosition, linear_head

# What the head is called where models are published: torchvision's, timm's, Hugging Face's, and the older ones.
_CONVENTIONAL = {"fc", "_fc", "classifier", "_classifier", "head", "heads", "last_linear", "linear", "logits"}

_AUXILIARY = re.compile("aux|dist", re.IGNORECASE)

# What a detector calls the layers beside its classes: most give as many numbers for each class.
_PLACES = re.compile("box|mask|regress|keypoint", re.IGNORECASE)

_CLASSES = re.compile("cls|class", re.IGNORECASE)

_NEVER = re.compile(r"(^|\.)pooler(\.|$)")


class Head(NamedTuple):
    """Where a model's head is: its dotted name, the module, and the width of the features that it takes."""

    name: str
    module: nn.Module
    in_features: int


def find_head(model: nn.Module, name: str | None = None) -> Head:
    """Find the classification layer, or the one named.

    A model that says it itself is believed (timm's ``get_classifier``). Of a detector it is what scores classes. Else
    it is the last layer with parameters,
    in definition order, if that is linear, or a convolution that is called like a head (SqueezeNet's
    ``classifier.1``). Where the signs disagree, nothing is guessed: the candidates are named.

    Args:
        model: Any module.
        name: Dotted name, where it cannot be told. It may name a container: its first linear layer or convolution
            then tells the width.

    Raises:
        LayerNotFoundError: No module has that name (the nearest are offered); or there is no linear layer, or it
            is not clear which layer is the head, or there are several heads (Inception's and GoogLeNet's auxiliary
            ones, the second one of a distilled DeiT).

    Example:
        >>> from transferkit.alexnet import AlexNet
        >>> find_head(AlexNet(10, channels=(4, 4, 4, 4, 4), hidden=8))
        Head(name='classifier.6', module=Linear(in_features=8, out_features=10, bias=True), in_features=8)
    """
    modules = dict(model.named_modules())
    if name is not None and name not in modules:
        raise LayerNotFoundError(
            f"no module named {name!r} in {type(model).__name__}{did_you_mean(name, modules)}"
        )
    if name is None:
        own = _told_by(model)
        if own is not None:
            return own
        name = _last(model)
        _check_alone(model, name)
    widths = [width for module in modules[name].modules() if (width := width_of(module)) is not None]
    if not widths:
        raise LayerNotFoundError(
            f"{name!r} is a {type(modules[name]).__name__} without a linear layer or convolution, so the width "
            "of its input is not known; name the layer itself"
        )
    return Head(name, modules[name], widths[0])


def width_of(module: nn.Module) -> int | None:
    """Return how many features a linear layer, or channels a convolution, takes; ``None`` for other modules."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels
    return module.in_features if is_linear(module) else None  # type: ignore[return-value]


def is_linear(module: nn.Module | None) -> bool:
    """Tell whether a module is a linear layer, torch's own or one that says so by the same attributes."""
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return module is not None and all(isinstance(width, int) for width in widths)


def _told_by(model: nn.Module) -> Head | None:
    """Ask a model of timm, which may have been built without a head: an identity stands there then."""
    ask = getattr(model, "get_classifier", None)
    told: Any = ask() if callable(ask) else None
    if isinstance(told, tuple | list | nn.ModuleList):
        several = [name for name, module in model.named_modules() if any(module is each for each in told)]
        raise _several(model, several)
    name = next((name for name, module in model.named_modules() if name and module is told), None)
    if name is None or told is None:
        return None
    if isinstance(told, nn.Identity):
        width = getattr(model, "head_hidden_size", None) or getattr(model, "num_features", None)
        return Head(name, told, width) if isinstance(width, int) else None
    if not any(map(is_head_layer, told.modules())):
        return None
    _check_alone(model, name)
    return find_head(model, name)


def is_head_layer(module: nn.Module) -> bool:
    """Tell whether a module can map features to classes: a linear layer, or a convolution of one cell."""
    return is_linear(module) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1})


def _last(model: nn.Module) -> str:
    """Return the name of the last layer with parameters where that can be the head, else of the one called so."""
    layers: list[tuple[str, nn.Module]] = [
        (name, module)
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    linears = [name for name, module in layers if is_linear(module)]
    called = [name for name, module in layers if is_head_layer(module) and name.split(".")[0] in _CONVENTIONAL]
    main = [name for name in called if not _AUXILIARY.search(name)]
    if not linears and not called:
        raise LayerNotFoundError(
            f"{type(model).__name__} has no linear layer to call its head; name the module to replace"
        )
    last, module = layers[-1]
    if _PLACES.search(_own_name(last)):
        scores = [name for name, layer in layers if is_linear(layer) and _CLASSES.search(_own_name(name))]
        if len(scores) == 1:
            return scores[0]
        raise _unclear(model, last, scores or main or linears)
    if main and (last == main[-1] or not is_linear(module)):
        return main[-1]
    if is_linear(module) and not main and not _NEVER.search(last):
        return last
    if _AUXILIARY.search(last):
        raise _several(model, [last, *main[-1:]])
    raise _unclear(model, last, main or linears)


def _own_name(name: str) -> str:
    """Return the last two parts of a dotted name without the numbers, ``"bbox_predictor.layers"``."""
    return ".".join([part for part in name.split(".") if not part.isdigit()][-2:])


def _check_alone(model: nn.Module, name: str) -> None:
    """Refuse where another layer that is called auxiliary, or distilled, tells the same classes apart."""
    found = dict(model.named_modules())
    classes = getattr(found[name], "out_features", None)
    others = [
        other
        for other, module in found.items()
        if other != name and is_linear(module) and module.out_features == classes
        if _AUXILIARY.search(other) or _AUXILIARY.search(name)
    ]
    if others:
        raise _several(model, [*others, name])


def _several(model: nn.Module, names: Sequence[str]) -> LayerNotFoundError:
    return LayerNotFoundError(
        f"{type(model).__name__} has several heads: {', '.join(map(repr, names))}; build it without the auxiliary or "
        f"distilled ones, or replace each by its name: name={names[-1]!r}"
    )


def _unclear(model: nn.Module, last: str, candidates: Sequence[str]) -> LayerNotFoundError:
    shown = " or ".join(map(repr, candidates[-3:]))
    return LayerNotFoundError(
        f"it is not clear which layer of {type(model).__name__} is its head: {last!r} is the last one with "
        f"parameters, and its head could be {shown}; give its name, or build the model with a head"
    )


# Put another head in the place of a model's own.


def replace_head(
    model: nn.Module, head: int | nn.Module | Callable[[int], nn.Module], *, name: str | None = None
) -> Head:
    """Put ``head`` where the model's head is, in place, on the same device and in the same dtype.

    Where the old head is a convolution, a head of linear layers is applied at every position of the map. A number
    of classes that the model keeps as its own attribute (``num_classes``, ``num_labels``) becomes the new one, and so
    does that of a Hugging Face model's ``config``, whose labels are then ``LABEL_0`` and so on until you name them.

    Args:
        model: Any module; changed in place.
        head: The new head, a function of ``in_features`` that builds it, or the number of classes of a linear head.
        name: Dotted name of the module to replace; found by :func:`find_head` unless given.

    Returns:
        The new head: name, module, ``in_features``.

    Raises:
        LayerNotFoundError: As :func:`find_head`; or other layers too give so many numbers for each class, as the
            boxes of a detector, and no name was given.
        ArgumentError: The new head's first layer takes another width than the features have, or takes maps where
            there are none.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1000))
        >>> replace_head(net, 21)
        Head(name='3', module=Linear(in_features=8, out_features=21, bias=True), in_features=8)
    """
    old = find_head(model, name)
    if name is None:
        _check_nothing_beside(model, old)
    new = _built(head, old)
    _check_fits(model, old, new)
    on_map = isinstance(_first_layer(old.module), nn.Conv2d)
    if on_map and is_linear(_first_layer(new)):
        new = PerPosition(new)
    weight = next(old.module.parameters(), None)
    weight = next(model.parameters()) if weight is None else weight
    new.to(device=weight.device, dtype=weight.dtype)
    parent, _, attribute = old.name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
    _tell_number_of_classes(model, old.name, new)
    return Head(old.name, new, old.in_features)


def _built(head: int | nn.Module | Callable[[int], nn.Module], old: Head) -> nn.Module:
    if isinstance(head, Integral) and not isinstance(head, bool):  # numpy's whole numbers are none of int's
        new = linear_head(old.in_features, int(head))
        if getattr(old.module, "bias", new.bias) is None:  # as what loads the model again will build it
            new.register_parameter("bias", None)
        return new
    if not callable(head):
        raise ArgumentError(
            "head must be a number of classes, a module, or a function of in_features that builds one, "
            f"got {head!r}"
        )
    return head if isinstance(head, nn.Module) else head(old.in_features)


def _check_fits(model: nn.Module, old: Head, new: nn.Module) -> None:
    if old.name == "":
        raise ArgumentError("the model is itself one linear layer; use the new head in its place")
    first = _first_layer(new)
    takes = None if first is None else width_of(first)
    if takes is not None and takes != old.in_features:
        raise ArgumentError(
            f"the new head takes {takes} features and {old.name!r} of {type(model).__name__} is given "
            f"{old.in_features}; build the head with in_features={old.in_features}"
        )
    if isinstance(first, nn.Conv2d) and is_linear(old.module):
        raise ArgumentError(
            f"the new head starts with a convolution and {old.name!r} of {type(model).__name__} is given vectors of "
            f"{old.in_features}; build it of linear layers, or name the module that is given the map"
        )


def _first_layer(module: nn.Module) -> nn.Module | None:
    """Return the first linear layer or convolution."""
    return next((each for each in module.modules() if width_of(each) is not None), None)


def _check_nothing_beside(model: nn.Module, head: Head) -> None:
    """Refuse to replace the scores of a detector alone, where boxes or masks are made for each class too."""
    classes = _width_out(head.module)
    others = [
        name
        for name, module in model.named_modules()
        if _PLACES.search(_own_name(name)) and _width_out(module) in (classes, 4 * (classes or -1))
        if name != head.name
    ]
    if classes and others:
        each = ", ".join(f"name={name!r}" for name in [head.name, *others])
        raise LayerNotFoundError(
            f"{type(model).__name__} has {len(others) + 1} layers made for its {classes} classes; replace each by "
            f"its name, or the module that holds them by one of its kind: {each}"
        )


def _width_out(module: nn.Module) -> int | None:
    width = getattr(module, "out_features", getattr(module, "out_channels", None))
    return width if isinstance(width, int) else None


def _tell_number_of_classes(model: nn.Module, name: str, head: nn.Module) -> None:
    """Keep the counts of the model, and of what holds the head, true: timm's and Hugging Face's forwards look."""
    widths = [width for each in head.modules() if (width := _width_out(each)) is not None]
    parts = name.split(".")
    for holder in [model.get_submodule(".".join(parts[:count])) for count in range(len(parts)) if widths]:
        for count in ("num_classes", "num_labels"):
            if isinstance(vars(holder).get(count), int):
                setattr(holder, count, widths[-1])
        config: Any = getattr(holder, "config", None)
        if isinstance(getattr(config, "num_labels", None), int) and config.num_labels != widths[-1]:
            config.num_labels, names = widths[-1], {n: f"LABEL_{n}" for n in range(widths[-1])}
            config.id2label, config.label2id = names, {name: n for n, name in names.items()}
            if config.problem_type == "regression" or widths[-1] == 1:
                config.problem_type = None  # found again from the next labels
