"""Optimizer state that moves along with its parameters: momentum, moving averages, step counts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.checkpoints._optimizers import (
    ELEMENTWISE,
    ParameterState,
    each_tensor,
    is_torchs,
    leaves,
    obstacle,
    unlike,
    unwrapped,
)
from transferkit.errors import TransferError
from transferkit.transfer._conversion import Conversion
from transferkit.transfer._entry import StateLine
from transferkit.transfer._shards import is_distributed
from transferkit.transfer._write import Transaction, not_finite

State = dict[str, Any]

_SPREAD = (
    "the parameters are spread over ranks. Next step: load_states=False, and torch.distributed.checkpoint for the "
    "optimizer's state"
)


@dataclass(frozen=True)
class MovedStates:
    """New optimizer state by parameter (``None`` to start anew), the lines of the report, and its notes."""

    states: Mapping[nn.Parameter, State | None]
    lines: tuple[StateLine, ...]
    notes: tuple[str, ...] = ()


NO_STATES = MovedStates({}, ())


def move_states(
    optimizer: Optimizer,
    conversions: Sequence[Conversion],
    written: Collection[str],
    tied_to: Mapping[str, str],
    notes: Iterable[str] = (),
) -> MovedStates:
    """Convert the source's optimizer state for the parameters that are written. Nothing is changed yet.

    A state moves only as a whole: an optimizer that finds half of what it keeps would fail at its next step.

    Args:
        optimizer: The target model's.
        conversions: One per target layer that has a source layer.
        written: Keys of the target tensors that are written.
        tied_to: For keys that are the same memory as a written one: that one's key.
        notes: What the source's reader had to say, quoted where there is no state.

    Raises:
        TransferError: The source has no optimizer state for any of them, or one that is broken; or the optimizer
            cannot be given any.
    """
    spread = any(is_distributed(parameter) for group in optimizer.param_groups for parameter in group["params"])
    why = obstacle(optimizer) or _loads_otherwise(unwrapped(optimizer)) or _SPREAD * spread
    if why:
        raise TransferError(f"load_states=True, and {why}; the model is bit for bit as it was")
    inner = unwrapped(optimizer)
    options = {parameter: group for group in inner.param_groups for parameter in group["params"]}
    states: dict[nn.Parameter, State | None] = {}
    lines, found, broken = [], [], []
    whole = [conversion.assembled() for conversion in conversions]
    for key, parameter, places in _places(whole, written, tied_to):
        if parameter not in options:
            continue
        try:
            state, conversion = _state_at(places)
            found.append(state)
            reason = unlike(state, inner, options[parameter], parameter.ndim)
            if reason:
                raise _ResetError(reason)
            broken += [f"  {key}: {problem}" for problem in state_problems(state, parameter, inner)]
            states[parameter] = cast_state(state, parameter, options[parameter])
            lines.append(StateLine(key, "adapted" if conversion.handler else "moved", tuple(map(str, state))))
        except _ResetError as reset:
            lines.append(StateLine(key, "reset", reason=str(reset)))
            states[parameter] = None
    _require_some(states, lines, notes)
    _require_sound(broken)
    return MovedStates(states, tuple(lines), tuple(_untold(found, inner)))


def cast_state(state: Mapping[str, Any], parameter: nn.Parameter, options: Mapping[str, Any]) -> State:
    """Return a copy of a state for a parameter, in the dtypes and on the devices of ``Optimizer.load_state_dict``."""
    # A tensor made in inference mode could not be written to by the next step, outside of it.
    with torch.inference_mode(False), torch.no_grad():
        return {
            name: each_tensor(value, partial(_cast, name=name, parameter=parameter, options=options))
            for name, value in state.items()
        }


def _cast(tensor: Tensor, name: str, parameter: nn.Parameter, options: Mapping[str, Any]) -> Tensor:
    if name == "step":  # counted in single precision, where torch's own code counts
        fast = options.get("capturable") or options.get("fused")
        how: dict[str, Any] = {"dtype": torch.float32, "device": parameter.device} if fast else {}
        return torch.empty_like(tensor, **how).copy_(tensor)
    floats = tensor.is_floating_point() and parameter.is_floating_point()
    like = parameter if tensor.shape == parameter.shape else tensor
    dtype = parameter.dtype if floats else tensor.dtype
    return torch.empty_like(like, dtype=dtype, device=parameter.device).copy_(tensor)


def state_problems(state: Mapping[str, Any], parameter: Tensor, optimizer: Optimizer) -> list[str]:
    """Say what is wrong with the values of a state: shapes, NaN, infinity, and overflow in the parameter's dtype."""
    return [
        f"{name} {why}"
        for name, value in state.items()
        for leaf in leaves(value)
        if (why := _problem(name, leaf, parameter, optimizer))
    ]


def _problem(name: str, leaf: object, parameter: Tensor, optimizer: Optimizer) -> str:
    if not isinstance(leaf, Tensor):
        return f"is {leaf}" if isinstance(leaf, float) and not math.isfinite(leaf) else ""
    shape, whole = list(leaf.shape), list(parameter.shape)
    # Novograd and its like keep one number where Adam keeps a tensor.
    strict = name in ELEMENTWISE and (leaf.ndim > 0 or is_torchs(optimizer))
    if shape != whole and (strict or not set(shape) <= {1, *whole}):
        return f"of shape {shape}, and its parameter is {whole}"
    if not leaf.is_floating_point():
        return ""
    return not_finite(leaf, leaf.dtype if name == "step" else parameter.dtype)


def _loads_otherwise(optimizer: Optimizer) -> str:
    kind = type(optimizer)
    if kind.load_state_dict is Optimizer.load_state_dict:
        return ""
    return (
        f"{kind.__name__} loads its states in a way of its own. Next step: load_states=False, and give it a whole "
        "state dict with optimizer.load_state_dict(...)"
    )


_Place = tuple[Conversion, str]


def _places(
    conversions: Iterable[Conversion], written: Collection[str], tied_to: Mapping[str, str]
) -> list[tuple[str, nn.Parameter, list[_Place]]]:
    """Return the written parameters, each with the places where the source may have its state."""
    places: dict[str, list[_Place]] = {key: [] for key in written}
    parameters: dict[str, nn.Parameter] = {}
    for conversion in conversions:
        for short, tensor in conversion.target.tensors.items():
            key = conversion.target.key(short)
            if isinstance(tensor, nn.Parameter) and (key in written or key in tied_to):
                places[tied_to.get(key, key)].append((conversion, short))
                parameters[tied_to.get(key, key)] = tensor
    return [(key, parameter, places[key]) for key, parameter in parameters.items()]


class _ResetError(Exception):
    """A state cannot be moved, for the reason given."""


def _state_at(places: Sequence[_Place]) -> tuple[ParameterState, Conversion]:
    """Return the state that the source has at one of a parameter's places, converted; two must be the same."""
    having = [(conversion, short) for conversion, short in places if conversion.source.states.get(short)]
    if not having:
        raise _ResetError("the source has none")
    first, *others = [conversion.source.states[short] for conversion, short in having]
    if not all(_same(first, other) for other in others):
        raise _ResetError("the target ties what the source keeps different states for")
    conversion, short = having[0]
    state = ParameterState.of(first)
    strange = [str(name) for name, value in state.items() if not all(map(_is_plain, leaves(value)))]
    if strange:
        raise _ResetError(f"{', '.join(strange)} is neither numbers nor a plain tensor")
    if conversion.handler is None:
        return state, conversion
    original = conversion.source.tensors[short].shape
    adapted = {name: _adapted(conversion, short, name, value, original) for name, value in state.items()}
    return replace(state, values_by_name=adapted), conversion


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one is other:
        return True
    mine, theirs = list(leaves(dict(one))), list(leaves(dict(other)))
    return one.keys() == other.keys() and len(mine) == len(theirs) and all(map(_equal, mine, theirs))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def _is_plain(leaf: object) -> bool:
    if type(leaf) in (Tensor, nn.Parameter, nn.Buffer):
        return leaf.layout == torch.strided and not (leaf.is_quantized or leaf.is_meta or leaf.is_nested)  # type: ignore[attr-defined]
    return leaf is None or isinstance(leaf, bool | int | float | str)


def _adapted(conversion: Conversion, short: str, name: str, value: Any, original: torch.Size) -> Any:
    """Convert one state as its parameter is converted; what counts steps stays as it is."""
    if not isinstance(value, Tensor | list | tuple | dict) or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    whole = isinstance(value, Tensor) and value.shape == original
    if not whole or not getattr(conversion.handler, "moves_states", False):
        raise _ResetError(f"{conversion.name} does not convert optimizer state")
    layer = conversion.source
    per_tensor = {
        other: state[name]
        for other, state in layer.states.items()
        if isinstance(state.get(name), Tensor) and state[name].shape == layer.tensors[other].shape
    }
    blank = {other: torch.zeros_like(tensor) for other, tensor in conversion.target.tensors.items()}
    source, target = replace(layer, tensors=per_tensor), replace(conversion.target, tensors=blank)
    values = replace(conversion, source=source, target=target).values() or {}
    if short not in values:
        raise _ResetError(f"{conversion.name} does not convert {name} alone")
    return values[short]


def _require_some(
    states: Mapping[nn.Parameter, State | None], lines: Iterable[StateLine], notes: Iterable[str]
) -> None:
    if any(states.values()):
        return
    reasons = list(dict.fromkeys(line.reason for line in lines)) or ["it holds none of these parameters"]
    told = [note for note in notes if "the optimizer's state is" in note]
    next_step = "load_states=False, or an optimizer of the source's class and settings"
    if reasons == ["the source has none"]:
        next_step = "Checkpoint.from_model(model, optimizer) of a live source, or load_states=False"
    raise TransferError(
        f"load_states=True, and no optimizer state could be moved ({'; '.join(reasons)}); the model is bit for bit "
        f"as it was. {f'The source says: {told[0]}' if told else f'Next step: {next_step}'}"
    )


def _require_sound(problems: Sequence[str]) -> None:
    """Refuse states that would break the training, as weights are refused."""
    if problems:
        raise TransferError(
            "these optimizer states are broken; the model is bit for bit as it was:\n"
            + "\n".join(problems)
            + "\nNext step: look at the source (a diverged training, a damaged file?), leave the layers out: "
            "select=... & ~by_name(...), or load_states=False; an overflow goes away with a wider dtype"
        )


def _untold(found: Iterable[ParameterState], optimizer: Optimizer) -> list[str]:
    """Say what the source leaves open about its states."""
    states, name, notes = list(found), type(optimizer).__name__, []
    if any(not state.made_by for state in states):
        notes.append(
            f"the source does not tell which optimizer made its states; by their names they are {name}'s"
        )
    if any(state.by_order for state in states):
        notes.append(
            "the source does not name the parameters of its optimizer; they are taken in definition order"
        )
    return notes


def install_states(
    optimizer: Optimizer, states: Mapping[nn.Parameter, State | None], transaction: Transaction
) -> None:
    """Give an optimizer new states, as loading does; ``None`` makes it start anew.

    Raises:
        TransferError: It does not take them.
    """
    inner = unwrapped(optimizer)
    options = {parameter: group for group in inner.param_groups for parameter in group["params"]}
    old = {parameter: dict(state) for parameter, state in inner.state.items()} if states else {}
    groups = [dict(group) for group in inner.param_groups]

    def install() -> None:
        for parameter, state in states.items():
            new = _fresh(inner, options[parameter], parameter) if state is None else state
            inner.state.pop(parameter, None)
            if new is not None:
                inner.state[parameter] = new
        if not states:
            return
        try:
            # Torch's classes turn the plain step counts of old files into tensors here.
            with torch.inference_mode(False), torch.no_grad():
                inner.__setstate__({"state": inner.state, "param_groups": inner.param_groups})
        except Exception as error:
            raise TransferError(f"{type(inner).__name__} does not take the states: {error!r}") from error

    def take_back() -> None:
        inner.state.clear()
        inner.state.update(old)
        for group, before in zip(inner.param_groups, groups, strict=True):
            group.clear()
            group.update(before)

    transaction.step(install, undo=take_back if states else lambda: None)


def _fresh(optimizer: Optimizer, options: Mapping[str, Any], parameter: nn.Parameter) -> State | None:
    """Return the state that an optimizer begins with; most have none before their first step."""
    if not isinstance(optimizer, torch.optim.Adagrad):
        return None
    with torch.inference_mode(False):
        total = torch.full_like(parameter, options["initial_accumulator_value"], requires_grad=False)
        return {"step": torch.tensor(0.0), "sum": total}


def optimizer_notes(model: nn.Module, optimizer: Optimizer, replaced: Collection[nn.Parameter]) -> list[str]:
    """Say what about an optimizer does not go with its model.

    Args:
        model: The target.
        optimizer: The one given along with it.
        replaced: Parameters whose state was moved or reset.
    """
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    own = [parameter for parameter in held if id(parameter) in names]
    frozen = [names[id(parameter)] for parameter in own if not parameter.requires_grad]
    having = {
        id(key) for state in (optimizer.state, unwrapped(optimizer).state) for key in state if _some(state[key])
    }
    stale = [parameter for parameter in own if id(parameter) in having and parameter not in replaced]
    notes = []
    if len(frozen) == len(own):
        notes.append("the optimizer trains no parameter of this model")
    elif frozen:
        notes.append(
            f"the optimizer holds {len(frozen)} frozen parameters: {', '.join(frozen[:3])}"
            + " ..." * (len(frozen) > 3)
        )
    if stale:
        notes.append(f"the optimizer keeps state of {len(stale)} parameters from before the transfer")
    return notes


def _some(state: object) -> bool:
    """Tell whether an optimizer has anything for a parameter, whatever it keeps."""
    return len(state) > 0 if isinstance(state, Mapping) else state is not None
