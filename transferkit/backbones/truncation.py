"""Half a network: what a model computes up to one of its layers, and nothing after it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from transferkit.errors import ArgumentError, LayerNotFoundError, did_you_mean


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


# A module changed in some places without changing it: what is on the way is new, everything else is shared.

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


# The tensor in what a model returns: not every model returns just one.


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


# Which modules take part in a forward, and a model without the others.


class LeftOut(nn.Module):
    """Stands where a module was left out, so that its siblings keep their places."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the example was not like this input.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "this input needs a layer that was left out, because the example did not need it; truncate the model "
            "without an example, or with one like this input"
        )


def reached_by(model: nn.Module, example: Any) -> frozenset[str]:
    """Return the dotted names of the modules that take part when ``model`` is given ``example``.

    A module takes part when it is called, or when a tensor that it owns is used: attention, for one, uses weights
    of its output projection without calling it. Runs in evaluation mode, without gradients; the model is left as it
    was.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    called: set[int] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, args: called.add(id(module)))
        for module in {id(module): module for module in modules.values()}.values()
    ]
    try:
        with evaluating(model), _Used() as used:
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(
        name
        for name, module in modules.items()
        if id(module) in called or any(id(tensor) in used.ids for tensor in _own(module))
    )


class _Used(TorchFunctionMode):
    """Notes which tensors are given to functions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()
        # The results of views and the like may be gone by the time another tensor takes their id; parameters and
        # buffers, which alone are asked for, live on.

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.ids |= {id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


def leave_out(model: nn.Module, keep: Collection[str]) -> nn.Module:
    """Return the model without the modules that own tensors and of which no part is in ``keep``.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 9))
        >>> list(leave_out(net, {"0"}).state_dict())
        ['0.weight', '0.bias']
    """
    return with_changes(model, {name: LeftOut() for name in _outermost_without(model, "", keep)})


def _outermost_without(module: nn.Module, name: str, keep: Collection[str]) -> list[str]:
    """Return the outermost modules below ``module`` that own tensors and hold nothing to keep."""
    found: list[str] = []
    for child, inner in module.named_children():
        full = f"{name}.{child}" if name else child
        if any(kept == full or kept.startswith(f"{full}.") for kept in keep):
            found += _outermost_without(inner, full, keep)
        elif inner.state_dict():
            found.append(full)
    return found


def _own(module: nn.Module) -> list[Tensor]:
    """Return the tensors that a module owns itself."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


# Half a network: what a model computes up to one of its layers, and nothing after it.


def truncate(
    model: nn.Module, layer: str | None = None, *, before: str | None = None, example: Tensor | None = None
) -> nn.Module:
    """Return a module that computes ``model`` up to a layer and stops there.

    It has the model's own layers under their own names, not copies: its state dict, its device and its training
    are theirs. The model itself is left as it was. Where nested ``nn.Sequential`` lead to the layer, it is such a
    nest, cut off. In any other model the forward runs as written until it reaches the layer, at the first call where
    it is called more than once; which layers come later is not known from their order of definition, so they stay
    in the module, never computed, unless ``example`` tells them.

    Args:
        model: Any module.
        layer: Dotted name of the last layer or container to compute; its output is returned.
        before: Instead of ``layer``: the first one that is not computed; what it would be given is returned (the
            first argument, where there are several).
        example: An input that the model takes. It is run once, in evaluation mode, and the layers that take no part
            are left out: they take no memory, and are not in the state dict.

    Returns:
        A module with the model's input, that can be trained, copied, saved and compiled.

    Raises:
        LayerNotFoundError: No module has that name; the nearest are offered.
        ArgumentError: Not exactly one of ``layer`` and ``before``, or the model never reaches the layer.

    Example:
        >>> import torch
        >>> from transferkit.alexnet import AlexNet
        >>> net = AlexNet(10, channels=(4, 4, 4, 4, 4), hidden=8)
        >>> truncate(net, "features.5")(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 4, 3, 3])
        >>> truncate(net, before="classifier.6")(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 8])
        >>> list(truncate(net, "features.2", example=torch.zeros(1, 3, 64, 64)).state_dict())
        ['features.0.weight', 'features.0.bias']

    References:
        Szegedy et al., "Intriguing properties of neural networks", ICLR 2014; Yosinski et al., "How transferable
        are features in deep neural networks?", NIPS 2014.
    """
    name = _one_of(layer, before)
    model = model.whole if isinstance(model, Truncated) else model
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        raise LayerNotFoundError(
            f"no module named {name!r} in {type(model).__name__}{did_you_mean(name, modules)}"
        )
    path = name.split(".")
    parents = [modules[".".join(path[:depth])] for depth in range(len(path))]
    if all(_is_chain(parent) for parent in parents):
        return _prefix(model, path, keep=before is None)
    stop = _stop_after if before is None else _Stop
    whole = with_changes(model, {name: stop(modules[name])})
    if example is not None:
        whole = leave_out(whole, reached_by(Truncated(whole, name, before is not None), example))
    return Truncated(whole, name, before is not None)


class Truncated(nn.Module):
    """A model that ends at one of its layers; made by :func:`truncate`.

    It shares the children, parameters and buffers of the model that it runs, so that they have the same names here.
    """

    def __init__(self, whole: nn.Module, layer: str, before: bool) -> None:
        super().__init__()
        self.layer, self.before = layer, before
        self.whole: nn.Module
        # Past nn.Module's own __setattr__: as a child it would put its name before every other.
        self.__dict__["whole"] = whole
        for own in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[own] = whole.__dict__[own]
        self.training = whole.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model until the layer is reached; return its output, or what it would be given."""
        try:
            self.whole(*args, **kwargs)
        except _Reached as reached:
            return reached.args[0]
        raise ArgumentError(
            f"{type(self.whole).__name__} computed its output without calling {self.layer!r}; choose a layer that "
            "takes part in its forward"
        )

    def train(self, mode: bool = True) -> Truncated:
        """Set training or evaluation mode, of the model too."""
        super().train(mode)
        self.whole.training = mode
        return self

    def extra_repr(self) -> str:
        """Return where it ends."""
        return f"{type(self.whole).__name__} up to {'' if not self.before else 'what enters '}{self.layer!r}"


class _Reached(Exception):
    """Carries what was asked for, its only argument, out of the model's forward."""


def _raise_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _Reached(args[0] if args else next(iter(kwargs.values())))


def _raise_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    raise _Reached(output)


class _Stop(nn.Module):
    """Stands where a layer stood before which the model ends.

    Asked for anything else than its output, it answers as the layer would, with tensors on the meta device: some
    containers read attributes of their children before they call them.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        empty: dict[int, Any] = {id(t): nn.Parameter(t.detach().to("meta"), False) for t in layer.parameters()}
        empty |= {id(tensor): tensor.to("meta") for tensor in layer.buffers()}
        self.__dict__["layer"] = copy.deepcopy(layer, empty)
        # In a hook, not in forward: where a child has hooks, torch's own containers call it as one expects.
        self.register_forward_pre_hook(_raise_input, with_kwargs=True)

    def __getattr__(self, name: str) -> Any:
        layer = self.__dict__.get("layer")
        return super().__getattr__(name) if layer is None else getattr(layer, name)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Never run: the hook comes first."""


def _stop_after(layer: nn.Module) -> nn.Module:
    layer = twin(layer)
    layer.register_forward_hook(_raise_output)
    return layer


def _is_chain(module: nn.Module) -> bool:
    """Tell whether a module does nothing but call its children one after the other."""
    return type(module).forward is nn.Sequential.forward and not module._forward_hooks


def _prefix(chain: nn.Module, path: list[str], keep: bool) -> nn.Sequential:
    """Return nested ``nn.Sequential`` up to the layer at ``path``, with it or without."""
    child, *rest = path
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in chain._modules.items():
        assert module is not None
        if name != child:
            kept[name] = module
            continue
        if rest:
            kept[name] = _prefix(module, rest, keep)
        elif keep:
            kept[name] = module
        break
    return nn.Sequential(kept)


def _one_of(layer: str | None, before: str | None) -> str:
    if (layer is None) == (before is None):
        raise ArgumentError(f"give a layer or before=layer, one of the two, got {layer!r} and {before!r}")
    name = layer if layer is not None else before
    assert name is not None
    if not name:
        raise ArgumentError("a layer must be a dotted name inside the model, got '', which is the model itself")
    return name
