"""An optimizer's state, given back to the parameters it belongs to.

A saved torch optimizer numbers its parameters by their place in its groups and does not name them. The numbers
are turned into names only where there is exactly one way to do so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.checkpoints.registry import States
from transferkit.memory import shared_groups

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

_Shape = tuple[int, ...] | None


def states_of_optimizer(model: nn.Module, optimizer: Optimizer) -> States:
    """Return the state of a live optimizer by the names its parameters have in ``model``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    states = {}
    for parameter, state in optimizer.state.items():
        if id(parameter) in names and state:
            states[names[id(parameter)]] = _as_tensors(state)
    return states


def attach_states(
    tensors: Mapping[str, Tensor], saved: Mapping[str, Any] | None, renamed: Mapping[str, str]
) -> tuple[States, list[str]]:
    """Return saved optimizer state by state-dict key, and a note where it was found but not attached.

    Args:
        tensors: The state dict, in definition order.
        saved: ``optimizer.state_dict()``, or ``None``.
        renamed: New key by old key, for states that are saved by name.
    """
    state = saved.get("state") if saved else None
    if not saved or not isinstance(state, Mapping) or not any(state.values()):
        return {}, []
    groups = [list(group["params"]) for group in saved["param_groups"]]
    ids = [number for group in groups for number in group]
    named = [name for group in saved["param_groups"] for name in group.get("param_names", ())]
    if all(isinstance(number, str) for number in ids):
        named = ids
    if len(named) == len(ids):
        keys: Sequence[str] | None = [renamed.get(name, name) for name in named]
    else:
        keys = _keys_by_order(tensors, [_shape(state.get(number)) for number in ids])
    if keys is None or any(key not in tensors for key in keys):
        return {}, [
            "the optimizer's state is not attached: its parameters cannot be told apart by order and shape"
        ]
    attached = {
        key: _as_tensors(state[number]) for key, number in zip(keys, ids, strict=True) if state.get(number)
    }
    return attached, []


def _keys_by_order(tensors: Mapping[str, Tensor], shapes: Sequence[_Shape]) -> list[str] | None:
    """Return the keys that the optimizer's parameters have, or ``None`` where more than one answer fits.

    Two orders are in use: definition order, and weights before biases and norms (the usual split for weight
    decay). Frozen parameters are absent, so the shapes may be found with gaps.
    """
    aliases = {key for group in shared_groups(tensors.items()) for key in group[1:]}
    keys = [key for key in tensors if not key.endswith(_BUFFERS) and key not in aliases]
    matrices = [key for key in keys if tensors[key].ndim > 1]
    vectors = [key for key in keys if tensors[key].ndim <= 1]
    fits: list[list[str]] = []
    for order in (keys, matrices + vectors, vectors + matrices):
        fit = _only_embedding(order, [tuple(tensors[key].shape) for key in order], shapes)
        if fit is not None and fit not in fits:
            fits.append(fit)
    return fits[0] if len(fits) == 1 else None


def _only_embedding(
    keys: Sequence[str], have: Sequence[tuple[int, ...]], wanted: Sequence[_Shape]
) -> list[str] | None:
    """Return the keys at which ``wanted`` is a subsequence of ``have``, if there is exactly one way to match it."""
    # There is only one way exactly where the leftmost and the rightmost match agree.
    left = _leftmost(have, wanted)
    right = _leftmost(have[::-1], wanted[::-1])
    if left is None or right is None or left != [len(have) - 1 - place for place in right[::-1]]:
        return None
    return [keys[place] for place in left]


def _leftmost(have: Sequence[tuple[int, ...]], wanted: Sequence[_Shape]) -> list[int] | None:
    places: list[int] = []
    start = 0
    for shape in wanted:
        place = next((i for i in range(start, len(have)) if shape is None or have[i] == shape), None)
        if place is None:
            return None
        places.append(place)
        start = place + 1
    return places


def _shape(state: Mapping[str, Any] | None) -> _Shape:
    """Return the shape of a state's parameter, or ``None`` where the state holds only scalars."""
    shapes = [
        tuple(value.shape) for value in (state or {}).values() if isinstance(value, Tensor) and value.ndim
    ]
    return max(shapes, key=len) if shapes else None


def _as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state; numbers such as a step count become tensors without dimensions."""
    return {
        name: value if isinstance(value, Tensor) else torch.tensor(value)
        for name, value in state.items()
        if isinstance(value, Tensor | int | float)
    }
