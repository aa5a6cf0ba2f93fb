"""Freeze and unfreeze layers by the rules that also select them, and tell whether what is frozen stayed as it was.

A frozen layer is not trained. What a forward pass changes in training mode is kept too: a module that owns buffers
(running statistics, the vectors of spectral norm) stays in evaluation mode when the model is put into training mode,
since statistics that drift change what fixed weights compute.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from transferkit.errors import ArgumentError, FrozenError
from transferkit.layers import Layer
from transferkit.memory import Fingerprint
from transferkit.transfer._target import Target
from transferkit.transfer.select import Predicate, every, select_layers


def freeze(model: nn.Module, select: Predicate | None = None, *, dropout: bool = True) -> tuple[str, ...]:
    """Freeze layers: their parameters take no gradient, and their statistics stay as they are in training mode.

    Gradients that they have are dropped, since an optimizer would still step along them. A tied parameter is frozen
    wherever it stands. Layers that are frozen already stay so.

    A module that owns buffers stays in evaluation mode, itself and not what is in it; so does one that is made in
    its place (``SyncBatchNorm.convert_sync_batchnorm``), while the module around it stays. Copies and pickles of the
    model stay frozen. ``torch.jit.script`` would lose it, and is refused.

    Args:
        model: Any module; changed in place.
        select: Which layers; all of them unless given.
        dropout: Whether dropout and stochastic depth in the frozen part stay active in training mode, as they usually
            do. ``False`` keeps in evaluation mode the frozen layers, modules that hold none but frozen layers, and
            modules without tensors that are defined between two frozen layers.

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
    layers = _layers(model)
    chosen = _chosen(layers, select)
    learning = _learning(layers)
    records = [_record(layer, learning) for layer in chosen]
    for layer, record in zip(chosen, records, strict=True):
        layer.module.__dict__[_RECORD] = record
        for parameter in _parameters(layer).values():
            parameter.requires_grad_(False)
            parameter.grad = None
        for module in _modules(layer):
            if _has_statistics(module):
                _hold(module)
    if not dropout:
        for module in _frozen_part(model, layers):
            _hold(module)
    _remember_children(model)
    return tuple(layer.name for layer in chosen)


def unfreeze(model: nn.Module, select: Predicate | None = None) -> tuple[str, ...]:
    """Undo :func:`freeze`: what took gradients before takes them again, and modules follow the model's mode.

    A parameter that was fixed before ``freeze`` stays fixed (the position embedding of a masked autoencoder). Layers
    that ``freeze`` never touched are left alone, unless a rule names them: then all their parameters train.

    Args:
        model: Any module; changed in place.
        select: Which layers; unless given, all that :func:`freeze` froze.

    Returns:
        The names of the unfrozen layers.

    Raises:
        SelectionError: A rule matches nothing.
        ArgumentError: Without a rule: nothing was frozen by :func:`freeze`, though parameters are fixed. Or a
            parameter cannot take gradients; nothing was changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = net[0].bias.requires_grad_(False)
        >>> freeze(net), unfreeze(net)
        (('0', '1'), ('0', '1'))
        >>> [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
        ['0.bias']
    """
    layers = _layers(model)
    chosen = [
        layer for layer in _chosen(layers, select) if select is not None or _RECORD in layer.module.__dict__
    ]
    if not chosen:
        _refuse_if_fixed(layers)
    _train([parameter for layer in chosen for parameter in _to_train(layer)])
    for layer in chosen:
        record = layer.module.__dict__.pop(_RECORD, None)
        if record is not None:
            record.own.clear()
        for module in _modules(layer):
            _release(module)
    kept = {id(module) for module in _frozen_part(model, layers)}
    kept |= {id(module) for layer in layers for module in _modules(layer)}
    for module in model.modules():
        if id(module) not in kept:
            _release(module)
    _remember_children(model)
    return tuple(layer.name for layer in chosen)


def frozen_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that could learn and do not: no gradient, and no statistics that move."""
    return tuple(layer.name for layer in _layers(model) if _is_frozen(layer))


def assert_frozen(model: nn.Module) -> tuple[str, ...]:
    """Assert that no parameter and no persistent buffer of a frozen layer changed since :func:`freeze`.

    ``freeze`` keeps a digest of every tensor that it freezes, in the model itself, so that a copy or a pickle can be
    asked too. It reads them once; so does this, at about half a second a gigabyte.

    Args:
        model: The model that was frozen, after training or at any time.

    Returns:
        The names of the layers that are as they were.

    Raises:
        FrozenError: Tensors changed, or can no longer be compared. The message names each, and by how much.
        ArgumentError: No layer of the model was frozen by :func:`freeze`.

    Example:
        >>> from transferkit.transfer.select import by_name
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = freeze(net, by_name("0"))
        >>> assert_frozen(net)
        ('0',)
        >>> _ = net[0].bias.data.add_(0.5)
        >>> assert_frozen(net)
        Traceback (most recent call last):
        transferkit.errors.FrozenError: of 1 frozen layers 1 changed since freeze():
          0.bias: float32 [2] changed by up to 0.5
        if that was meant (a transfer, a conversion), unfreeze(model, by_name('0')) and freeze it again
    """
    records = [
        (layer, layer.module.__dict__[_RECORD]) for layer in _layers(model) if _RECORD in layer.module.__dict__
    ]
    if not records:
        raise ArgumentError(
            f"no layer of this {type(model).__name__} was frozen by freeze(), so there is nothing to compare with; "
            "freeze(model, ...) before the training"
        )
    changed = {layer.name: lines for layer, record in records if (lines := _changes(layer, record))}
    if changed:
        lines = [line for found in changed.values() for line in found]
        names = ", ".join(map(repr, changed))
        raise FrozenError(
            "\n  ".join([f"of {len(records)} frozen layers {len(changed)} changed since freeze():", *lines])
            + f"\nif that was meant (a transfer, a conversion), unfreeze(model, by_name({names})) and freeze it again"
        )
    return tuple(layer.name for layer, _ in records)


# Layers, and the records that freeze leaves in their modules. All is kept in plain attributes of the modules: copies
# and pickles keep it, and no hook stands in the way of torch.compile.

_RECORD, _CHILDREN, _HOLD = "_transferkit_frozen", "_transferkit_frozen_children", "_transferkit_hold"


@dataclass(eq=False)
class _Record:
    """What freeze found in a layer when it was first frozen.

    Attributes:
        learned: Short names of the parameters that took a gradient.
        values: What each tensor held, by short name.
        own: The module's own parameters, else its buffers: a module that is made in its place has them too. Empty
            once the layer is unfrozen.
    """

    learned: frozenset[str]
    values: dict[str, Fingerprint]
    own: list[Tensor]


class _LiveLayer(Layer):
    """A layer of a model, which always has its module."""

    module: nn.Module


def _layers(model: nn.Module) -> list[_LiveLayer]:
    """Return a model's layers, modules that were made in the place of frozen ones frozen."""
    layers = Target.of(model).layers
    for module in model.modules():
        _adopt(module)
    return [cast(_LiveLayer, layer) for layer in layers]


def _chosen(layers: list[_LiveLayer], select: Predicate | None) -> list[_LiveLayer]:
    return [layers[place] for place in select_layers(every() if select is None else select, layers).indices]


def _parameters(layer: _LiveLayer) -> dict[str, nn.Parameter]:
    return {short: tensor for short, tensor in layer.tensors.items() if isinstance(tensor, nn.Parameter)}


def _modules(layer: _LiveLayer) -> list[nn.Module]:
    """Return the modules that a layer's tensors are in: its own, and its parametrizations."""
    parametrizations = getattr(layer.module, "parametrizations", None)
    inner = parametrizations.modules() if isinstance(parametrizations, nn.ModuleDict) else ()
    return [layer.module, *inner]


def _learning(layers: Iterable[_LiveLayer]) -> set[int]:
    """Return the parameters that take gradients, or did before they were frozen."""
    learning = set()
    for layer in layers:
        record = layer.module.__dict__.get(_RECORD)
        for short, parameter in _parameters(layer).items():
            if parameter.requires_grad or (record is not None and short in record.learned):
                learning.add(id(parameter))
    return learning


def _record(layer: _LiveLayer, learning: Collection[int]) -> _Record:
    learned = frozenset(short for short, parameter in _parameters(layer).items() if id(parameter) in learning)
    record: _Record | None = layer.module.__dict__.get(_RECORD)
    if record is not None:
        record.learned = learned
        return record
    values = {short: Fingerprint.of(tensor) for short, tensor in layer.tensors.items()}
    return _Record(learned, values, _own(layer.module))


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False)] or [*module.buffers(recurse=False)]


def _has_statistics(module: nn.Module) -> bool:
    """Tell whether a module owns buffers that a forward pass may change; masks of truth values are none."""
    return any(buffer.dtype != torch.bool for buffer in module.buffers(recurse=False))


def _is_frozen(layer: _LiveLayer) -> bool:
    parameters = _parameters(layer).values()
    could_learn = bool(parameters) or _RECORD in layer.module.__dict__
    moving = any(_has_statistics(module) and _HOLD not in module.__dict__ for module in _modules(layer))
    return could_learn and not moving and not any(parameter.requires_grad for parameter in parameters)


def _changes(layer: _LiveLayer, record: _Record) -> list[str]:
    """Return a line for each tensor that is not what it was."""
    lines = []
    for short, value in record.values.items():
        tensor = layer.tensors.get(short)
        how = "is no longer there" if tensor is None else value.difference(Fingerprint.of(tensor))
        lines += [f"{layer.key(short)}: {how}"] if how else []
    return lines


# What trains again.


def _to_train(layer: _LiveLayer) -> list[nn.Parameter]:
    record, parameters = layer.module.__dict__.get(_RECORD), _parameters(layer)
    if record is not None:
        return [parameter for short, parameter in parameters.items() if short in record.learned]
    return [
        parameter
        for parameter in parameters.values()
        if parameter.is_floating_point() or parameter.is_complex()
    ]


def _train(parameters: list[nn.Parameter]) -> None:
    """Let parameters take gradients, all of them or none."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
    except RuntimeError as error:
        for parameter, learned in zip(parameters, before, strict=True):
            if not learned:
                parameter.requires_grad_(False)
        raise ArgumentError(f"a parameter cannot take gradients, so nothing was unfrozen: {error}") from error


def _refuse_if_fixed(layers: Iterable[_LiveLayer]) -> None:
    fixed = [
        layer.key(short)
        for layer in layers
        for short, parameter in _parameters(layer).items()
        if not parameter.requires_grad and parameter.is_floating_point()
    ]
    if fixed:
        raise ArgumentError(
            f"freeze() froze no layer of this model, and {len(fixed)} parameters are fixed by other means, first "
            f"{fixed[0]!r}; name what is to be trained: unfreeze(model, every()), or some layers by a rule"
        )


# Modules that stay in evaluation mode.


@dataclass(eq=False)
class _Hold:
    """What a module that stays in evaluation mode goes back to: the mode asked of it, and a ``train`` of its own."""

    mode: bool
    train: Callable[..., Any] | None


def _hold(module: nn.Module) -> None:
    if _HOLD in module.__dict__:
        return
    own = module.__dict__.get("train")
    module.__dict__[_HOLD] = _Hold(module.training, None if _is_ours(own) else own)
    module.__dict__["train"] = partial(_stay_in_evaluation, module)
    module.__dict__["__prepare_scriptable__"] = partial(_refuse_scripting, module)
    module.training = False


def _release(module: nn.Module) -> None:
    hold = module.__dict__.pop(_HOLD, None)
    if hold is None:
        return
    del module.__dict__["train"], module.__dict__["__prepare_scriptable__"]
    if hold.train is not None:
        module.__dict__["train"] = hold.train
    elif _CHILDREN in module.__dict__:
        module.__dict__["train"] = partial(_keep_children, module)
    module.training = hold.mode


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for ``module.train``: what is in the module follows, and it stays in evaluation mode itself."""
    _keep_children(module, mode)
    hold = module.__dict__.get(_HOLD)
    if hold is not None:
        hold.mode = mode
    module.training = False
    return module


def _keep_children(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for ``module.train``: what was made in the place of a frozen child is frozen first."""
    _adopt(module)
    type(module).train(module, mode)
    return module


def _refuse_scripting(module: nn.Module) -> nn.Module:
    raise ArgumentError(
        f"torch.jit.script would let the statistics of a frozen {type(module).__name__} move in training mode; to "
        "train, script the model first and freeze the scripted one; to serve, script a copy: "
        "copied = copy.deepcopy(model); unfreeze(copied); torch.jit.script(copied.eval())"
    )


# Modules that are made in the place of frozen ones, such as convert_sync_batchnorm's: the module around them knows.


def _remember_children(model: nn.Module) -> None:
    for module in model.modules():
        records = [child.__dict__[_RECORD] for child in module.children() if _RECORD in child.__dict__]
        if records:
            module.__dict__[_CHILDREN] = records
            module.__dict__.setdefault("train", partial(_keep_children, module))
        elif (
            module.__dict__.pop(_CHILDREN, None)
            and _is_ours(module.__dict__["train"])
            and _HOLD not in module.__dict__
        ):
            del module.__dict__["train"]


def _is_ours(train: Callable[..., Any] | None) -> bool:
    return isinstance(train, partial) and train.func in (_stay_in_evaluation, _keep_children)


def _adopt(module: nn.Module) -> None:
    """Freeze what took the place of a frozen child, which is known by its tensors."""
    present = {id(child.__dict__[_RECORD]) for child in module.children() if _RECORD in child.__dict__}
    for record in module.__dict__.get(_CHILDREN, ()):
        own = set() if id(record) in present else {id(tensor) for tensor in record.own}
        for child in module.children():
            if own & {id(tensor) for tensor in _own(child)}:
                child.__dict__[_RECORD] = record
                if _has_statistics(child):
                    _hold(child)


def _frozen_part(model: nn.Module, layers: Iterable[_LiveLayer]) -> Iterator[nn.Module]:
    """Yield the frozen layers, the modules that hold none but such, and those without tensors between two of them."""
    frozen = {id(module): _RECORD in layer.module.__dict__ for layer in layers for module in _modules(layer)}
    modules = [*model.modules()]
    known = [(place, frozen[id(module)]) for place, module in enumerate(modules) if id(module) in frozen]
    for place, module in enumerate(modules):
        inside = [frozen[id(each)] for each in module.modules() if id(each) in frozen]
        if inside and all(inside):
            yield from module.modules()
        if not inside:
            earlier = [is_frozen for other, is_frozen in known if other < place][-1:]
            later = [is_frozen for other, is_frozen in known if other > place][:1]
            if known and all(earlier + later):
                yield module
