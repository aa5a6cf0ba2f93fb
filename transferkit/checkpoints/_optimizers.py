"""What is known of an optimizer and of what it keeps: its class, its hyperparameters, the names of its states.

A state means what the step of its class makes of it: SGD's ``momentum_buffer`` is a sum of gradients and Muon's an
average. Live optimizers tell their class. A file of torch does not, and is compared by its hyperparameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True, eq=False)
class ParameterState(Mapping[str, Any]):
    """What an optimizer keeps for one parameter: tensors, numbers, or lists and dicts of them, by name.

    Attributes:
        values_by_name: The states.
        made_by: Dotted name of the class whose step they are for; empty where the source does not tell.
        options: Hyperparameters of the parameter's group; ``None`` where the source does not tell.
        by_order: Whether order and shapes alone tell that they are this parameter's.
    """

    values_by_name: Mapping[str, Any]
    made_by: str = ""
    options: Mapping[str, Any] | None = None
    by_order: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> ParameterState:
        """Return a state as one; a plain mapping tells nothing of its optimizer."""
        return state if isinstance(state, ParameterState) else cls(state)

    def to(self, device: torch.device | str) -> ParameterState:
        """Return the state with its tensors on a device."""
        return self._with(lambda tensor: tensor.to(device))

    def copied(self) -> ParameterState:
        """Return the state with copies of its tensors."""
        return self._with(Tensor.clone)

    def _with(self, change: Callable[[Tensor], Tensor]) -> ParameterState:
        changed = {name: each_tensor(value, change) for name, value in self.items()}
        return replace(self, values_by_name=changed)


def each_tensor(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """Return a state's value with every tensor in it converted."""
    if isinstance(value, Tensor):
        return convert(value)
    if type(value) in (list, tuple):
        return type(value)(each_tensor(part, convert) for part in value)
    if isinstance(value, dict):
        return {name: each_tensor(part, convert) for name, part in value.items()}
    return value


def leaves(value: Any) -> Iterator[Any]:
    """Yield what a state's value is made of."""
    if type(value) in (list, tuple):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    else:
        yield value


def states_of(optimizer: Optimizer) -> tuple[dict[int, ParameterState], list[str]]:
    """Return the state of a live optimizer by the ``id`` of its parameter, or none and a note that says why."""
    inner = unwrapped(optimizer)
    why = obstacle(optimizer)
    if why:
        return {}, [f"the optimizer's state is left out: {why}"]
    options = {id(parameter): group for group in inner.param_groups for parameter in group["params"]}
    made_by = name_of(class_that_steps(type(inner)))
    return {
        id(parameter): ParameterState(dict(state), made_by, own_options(options[id(parameter)]))
        for parameter, state in inner.state.items()
        if state
    }, []


def own_options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a parameter group."""
    return {name: value for name, value in group.items() if name not in ("params", "param_names")}


# Optimizers inside optimizers (Lookahead, accelerate's, Lightning's), and those with more than a state per parameter.


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that takes the steps, where another is wrapped around it."""
    seen = [optimizer]
    while len(inside := _inside(seen[-1])) == 1 and _params(inside[0]) == _params(seen[-1]):
        if any(inside[0] is other for other in seen):
            break
        seen.append(inside[0])
    return seen[-1]


def obstacle(optimizer: Optimizer) -> str:
    """Say why an optimizer's state cannot be taken or given parameter by parameter, or return an empty string."""
    inner, name = unwrapped(optimizer), type(optimizer).__name__
    if _inside(inner):
        return f"{name} holds optimizers of other parameters than its own; use these one by one"
    if optimizer is not inner and optimizer.state is not inner.state and len(optimizer.state):
        return (
            f"{name} keeps states of its own beside those of the {type(inner).__name__} inside; use that one, and "
            f"build {name} around it afterwards"
        )
    if isinstance(inner, torch.optim.LBFGS):
        return f"{name} keeps one state for all parameters together"
    held = _params(inner)
    if any(id(key) not in held for key in inner.state):
        return f"{name} keeps states that belong to no parameter of its groups"
    if not all(isinstance(state, Mapping) for state in inner.state.values()):
        return f"{name} keeps something else than a dict of states for a parameter"
    return ""


def _inside(optimizer: Optimizer) -> list[Optimizer]:
    values = getattr(optimizer, "__dict__", {}).values()
    several = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return [part for part in several if isinstance(part, Optimizer)]


def _params(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


# Two optimizers are alike where their states mean the same.


def class_that_steps(kind: type) -> type:
    """Return the class whose code an optimizer runs: one that adds no method but ``__init__`` runs its base's.

    Example:
        >>> class Mine(torch.optim.Adam):
        ...     def __init__(self, params, **kwargs):
        ...         super().__init__(params, **kwargs)
        >>> class_that_steps(Mine), class_that_steps(torch.optim.AdamW)
        (<class 'torch.optim.adam.Adam'>, <class 'torch.optim.adam.Adam'>)
    """
    line = kind.__mro__
    for place, cls in enumerate(line):
        own = {n: f for n, f in vars(cls).items() if inspect.isfunction(f) and not n.startswith("__")}
        # Torch itself wraps what a class inherits: step for its profiler, the making of states for torch.compile.
        if any(inspect.unwrap(f) is not _inherited(line[place + 1 :], n) for n, f in own.items()):
            return cls
    return kind


def _inherited(bases: Sequence[type], name: str) -> Any:
    """Return the function that a class would have from its bases, without what is wrapped around it."""
    return next((inspect.unwrap(vars(base)[name]) for base in bases if name in vars(base)), None)


def name_of(kind: type) -> str:
    """Return the dotted name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def unlike(state: ParameterState, optimizer: Optimizer, options: Mapping[str, Any], ndim: int) -> str:
    """Say why a state does not mean to an optimizer what it says, or return an empty string.

    Args:
        state: The source's.
        optimizer: The one that is to go on with it, unwrapped.
        options: Hyperparameters of the parameter's group there.
        ndim: Number of dimensions of the parameter.
    """
    cls = class_that_steps(type(optimizer))
    name, found = type(optimizer).__name__, [str(key) for key, value in state.items() if value is not None]
    kept = _kept(cls, options, ndim)
    if kept is not None and set(kept) != set(found):
        whose = f" ({state.made_by})" if state.made_by else ""
        return f"{name} keeps {', '.join(kept) or 'none'}, the source has {', '.join(found)}{whose}"
    if state.options is None and not state.made_by and kept is None:
        return f"nothing tells that they are {name}'s"
    return other_class(state, optimizer, options) or _other_form(state.options or {}, optimizer, options)


def other_class(state: ParameterState, optimizer: Optimizer, options: Mapping[str, Any]) -> str:
    """Say how it is known that a state is of another class than an optimizer, or return an empty string."""
    cls = name_of(class_that_steps(type(optimizer)))
    if not state.made_by:
        return _other_names(state.options, optimizer, options)
    here = type(optimizer).__name__
    return "" if state.made_by == cls else f"the source steps as {state.made_by}, and {here} as {cls}"


# Hyperparameters that torch's classes got later, or that say how to compute and not what; those that schedules add.
_COMPUTED = {"maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
_SCHEDULED = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr"}
# Numbers and switches that change the step and not what is kept for it.
_OF_THE_STEP = (
    {"lr", "weight_decay", "eps", "nesterov", "lr_decay", "initial_accumulator_value"}
    | (_COMPUTED - {"maximize"})
    | _SCHEDULED
)


def _other_names(there: Mapping[str, Any] | None, optimizer: Optimizer, here: Mapping[str, Any]) -> str:
    """Compare the names of hyperparameters, by which files that name no class are told apart."""
    if there is None:
        return ""
    only_here = set(optimizer.defaults) - _COMPUTED - set(there)
    only_there = set(there) - _SCHEDULED - {*optimizer.defaults, *here}
    if is_torchs(optimizer):  # the file may be of a later torch
        only_there -= _COMPUTED
    if not only_here and not only_there:
        return ""
    return (
        f"the source's optimizer is no {type(optimizer).__name__} by its hyperparameters: "
        f"only here {', '.join(sorted(only_here)) or 'none'}, only there {', '.join(sorted(only_there)) or 'none'}"
    )


def _other_form(there: Mapping[str, Any], optimizer: Optimizer, here: Mapping[str, Any]) -> str:
    """Compare the hyperparameters that switch a state on or off, or turn it around."""
    for name in [name for name in optimizer.defaults if name in here and name in there]:
        if name not in _OF_THE_STEP and _form(here[name]) != _form(there[name]):
            return f"{name} is {here[name]!r} in {type(optimizer).__name__}, {there[name]!r} in the source"
    return ""


def _form(value: object) -> object:
    """Return a switch or a text as it is, and of a number whether it is zero."""
    if value is None or isinstance(value, bool | str):
        return value
    return value != 0 if isinstance(value, int | float) else "given"


# What torch's own optimizers keep for a parameter: always, and where a hyperparameter is set.
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_ALWAYS: dict[str, tuple[str, ...]] = {
    "SGD": (),
    "Adam": _MOMENTS,
    "SparseAdam": _MOMENTS,
    "RAdam": _MOMENTS,
    "NAdam": (*_MOMENTS, "mu_product"),
    "Adamax": ("step", "exp_avg", "exp_inf"),
    "Adadelta": ("step", "square_avg", "acc_delta"),
    "Adagrad": ("step", "sum"),
    "RMSprop": ("step", "square_avg"),
    "Rprop": ("step", "prev", "step_size"),
    "ASGD": ("step", "eta", "mu", "ax"),
    "Adafactor": (),
    "Muon": ("momentum_buffer",),
}
_WHERE_SET: dict[str, dict[str, str]] = {
    "SGD": {"momentum": "momentum_buffer"},
    "Adam": {"amsgrad": "max_exp_avg_sq"},
    "RMSprop": {"momentum": "momentum_buffer", "centered": "grad_avg"},
}
# States that have a value for every element of their parameter, whatever optimizer keeps them.
ELEMENTWISE = frozenset(
    [
        *("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta"),
        *("grad_avg", "sum", "prev", "step_size", "ax", "variance"),
    ]
)


def is_torchs(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer steps as one of torch's own, whose states are known."""
    return _kept(class_that_steps(type(optimizer)), {}, 1) is not None


def _kept(cls: type, options: Mapping[str, Any], ndim: int) -> list[str] | None:
    """Return the names of the states that an optimizer keeps for a parameter, or ``None`` where it is not known."""
    name = cls.__name__
    if cls is not getattr(torch.optim, name, None) or name not in _ALWAYS:
        return None
    if name == "Adafactor":
        return ["step", "row_var", "col_var"] if ndim > 1 else ["step", "variance"]
    where_set = _WHERE_SET.get(name, {})
    return [*_ALWAYS[name], *(state for switch, state in where_set.items() if options.get(switch))]
