"""Put another head in the place of a model's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from transferkit.errors import ArgumentError
from transferkit.heads.find import Head, find_head, is_linear, width_of
from transferkit.heads.per_position import PerPosition


def replace_head(
    model: nn.Module, head: nn.Module | Callable[[int], nn.Module], *, name: str | None = None
) -> Head:
    """Put ``head`` where the model's head is, in place, on the same device and in the same dtype.

    Where the old head is a convolution, a head of linear layers is applied at every position of the map. A number
    of classes that the model keeps as its own attribute (``num_classes``, ``num_labels``) becomes the new one.

    Args:
        model: Any module; changed in place.
        head: The new head, or a function of ``in_features`` that builds it.
        name: Dotted name of the module to replace; found by :func:`find_head` unless given.

    Returns:
        The new head: name, module, ``in_features``.

    Raises:
        LayerNotFoundError: As :func:`find_head`.
        ArgumentError: The new head's first layer takes another width than the features have, or takes maps where
            there are none.

    Example:
        >>> from transferkit.heads import linear_head
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1000))
        >>> replace_head(net, lambda width: linear_head(width, 21))
        Head(name='3', module=Linear(in_features=8, out_features=21, bias=True), in_features=8)
    """
    old = find_head(model, name)
    new = head if isinstance(head, nn.Module) else head(old.in_features)
    _check_fits(model, old, new)
    on_map = isinstance(_first_layer(old.module), nn.Conv2d)
    if on_map and is_linear(_first_layer(new)):
        new = PerPosition(new)
    weight = next(old.module.parameters(), None)
    weight = next(model.parameters()) if weight is None else weight
    new.to(device=weight.device, dtype=weight.dtype)
    parent, _, attribute = old.name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
    _tell_number_of_classes(model, new)
    return Head(old.name, new, old.in_features)


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


def _tell_number_of_classes(model: nn.Module, head: nn.Module) -> None:
    """Keep the model's own count true: timm's forward looks at it, to see whether there is a head at all."""
    widths = [getattr(each, "out_features", getattr(each, "out_channels", None)) for each in head.modules()]
    widths = [width for width in widths if isinstance(width, int)]
    for name in ("num_classes", "num_labels"):
        if widths and isinstance(vars(model).get(name), int):
            setattr(model, name, widths[-1])
