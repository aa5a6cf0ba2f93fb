"""Half a network: what a model computes up to one of its layers, and nothing after it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from transferkit.backbones.surgery import evaluating, replace_submodules, shallow_copy
from transferkit.errors import ArgumentError, LayerNotFoundError, did_you_mean

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
    return replace_submodules(model, {name: LeftOut() for name in _outermost_without(model, "", keep)})


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
    whole = replace_submodules(model, {name: stop(modules[name])})
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
    layer = shallow_copy(layer)
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
