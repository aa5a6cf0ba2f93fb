"""Which modules take part in a forward, and a model without the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from transferkit.backbones.evaluating import evaluating
from transferkit.backbones.twins import with_changes
from transferkit.errors import ArgumentError


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
