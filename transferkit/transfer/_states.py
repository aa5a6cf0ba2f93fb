"""Optimizer state that moves along with its parameters: momentum, moving averages, step counts."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.errors import TransferError
from transferkit.transfer._conversion import Conversion
from transferkit.transfer._entry import StateLine
from transferkit.transfer._write import Transaction

State = dict[str, Tensor]


@dataclass(frozen=True)
class MovedStates:
    """New optimizer state by parameter (``None`` to start anew), and the lines of the report."""

    states: Mapping[nn.Parameter, State | None]
    lines: tuple[StateLine, ...]


def move_states(
    optimizer: Optimizer, conversions: Iterable[Conversion], written: Collection[str]
) -> MovedStates:
    """Convert the source's optimizer state for the parameters that are written. Nothing is changed yet.

    A state moves only as a whole: an optimizer that finds half of what it keeps would fail at its next step.

    Args:
        optimizer: The target model's.
        conversions: One per target layer that has a source layer.
        written: Keys of the target tensors that are written.

    Raises:
        TransferError: The source has no optimizer state for any of them.
    """
    options = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    states: dict[nn.Parameter, State | None] = {}
    lines = []
    for conversion in conversions:
        for short, parameter in conversion.target.tensors.items():
            key = conversion.target.key(short)
            if key not in written or not isinstance(parameter, nn.Parameter) or parameter not in options:
                continue
            try:
                state = _new_state(optimizer, options[parameter], conversion, short, parameter)
                outcome = "adapted" if conversion.handler is not None else "moved"
                lines.append(StateLine(key, outcome, tuple(state)))
                states[parameter] = state
            except _ResetError as reason:
                lines.append(StateLine(key, "reset", reason=str(reason)))
                states[parameter] = None
    if not any(states.values()):
        reasons = ", ".join(dict.fromkeys(line.reason for line in lines)) or "it holds none of these parameters"
        raise TransferError(
            f"load_states=True, and no optimizer state could be moved ({reasons}); the model is bit for bit as it "
            "was. Next step: Checkpoint.from_state_dict(..., optimizer_state=...), or load_states=False"
        )
    return MovedStates(states, tuple(lines))


NO_STATES = MovedStates({}, ())


def install_states(
    optimizer: Optimizer, states: Mapping[nn.Parameter, State | None], transaction: Transaction
) -> None:
    """Give an optimizer new states; ``None`` removes one, so that the optimizer starts anew."""
    old = {parameter: optimizer.state.get(parameter) for parameter in states}

    def install(new: Mapping[nn.Parameter, Any]) -> None:
        for parameter, state in new.items():
            if state is None:
                optimizer.state.pop(parameter, None)
            else:
                optimizer.state[parameter] = state

    transaction.step(lambda: install(states), undo=lambda: install(old))


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
    stale = [parameter for parameter in own if optimizer.state.get(parameter) and parameter not in replaced]
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


class _ResetError(Exception):
    """A state cannot be moved, for the reason given."""


def _new_state(
    optimizer: Optimizer,
    options: Mapping[str, Any],
    conversion: Conversion,
    short: str,
    parameter: nn.Parameter,
) -> State:
    found = conversion.source.states.get(short)
    if not found:
        raise _ResetError("the source has none")
    kept = _states_kept(optimizer, options, parameter)
    if set(kept) != set(found):
        raise _ResetError(
            f"{type(optimizer).__name__} keeps {', '.join(kept) or 'none'}, the source has {', '.join(found)}"
        )
    original = conversion.source.tensors[short].shape
    if conversion.handler is not None:
        found = {name: _adapted(conversion, short, name, value, original) for name, value in found.items()}
    new = {}
    for name, value in found.items():
        like = parameter if value.shape == parameter.shape else value
        new[name] = torch.empty_like(like, dtype=kept[name].dtype, device=kept[name].device).copy_(value)
    return new


def _adapted(conversion: Conversion, short: str, name: str, value: Tensor, original: torch.Size) -> Tensor:
    """Convert one state as its parameter is converted; what counts steps stays as it is."""
    if value.ndim == 0:
        return value
    if value.shape != original or not getattr(conversion.handler, "moves_states", False):
        raise _ResetError(f"{conversion.name} does not convert optimizer state")
    layer = conversion.source
    per_tensor = {
        other: state[name]
        for other, state in layer.states.items()
        if name in state and state[name].shape == layer.tensors[other].shape
    }
    blank = {other: torch.zeros_like(tensor) for other, tensor in conversion.target.tensors.items()}
    source, target = replace(layer, tensors=per_tensor), replace(conversion.target, tensors=blank)
    values = replace(conversion, source=source, target=target).values() or {}
    if short not in values:
        raise _ResetError(f"{conversion.name} does not convert {name} alone")
    return values[short]


def _states_kept(optimizer: Optimizer, options: Mapping[str, Any], parameter: nn.Parameter) -> State:
    """Return the state that an optimizer keeps for a parameter, by letting one like it take a step."""
    accepted = inspect.signature(type(optimizer)).parameters
    settings = {key: value for key, value in options.items() if key in accepted and key != "params"}
    small = torch.zeros(
        (2,) * parameter.ndim, dtype=parameter.dtype, device=parameter.device, requires_grad=True
    )
    small.grad = torch.zeros_like(small)
    try:
        twin = type(optimizer)([small], **settings)
        twin.step()
    except Exception as error:
        raise _ResetError(f"{type(optimizer).__name__} does not tell its state: {error}") from None
    return {name: value for name, value in twin.state[small].items() if isinstance(value, Tensor)}
