"""A saved optimizer's state, given back to the parameters it belongs to.

A saved torch optimizer numbers its parameters by their place in its groups, and names them only where it was built
from named parameters. Numbers are turned into names only where there is one way to do so. Within a group the
parameters are taken to stand in definition order, as is usual; the order of the groups tells nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints._optimizers import ELEMENTWISE, ParameterState, leaves, own_options
from transferkit.checkpoints.registry import States
from transferkit.errors import listed
from transferkit.layers import split_key
from transferkit.memory import shared_groups

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_NEXT_STEP = (
    "save an optimizer that was built from model.named_parameters(), which stores their names; or build the source "
    "model and its optimizer, load both, and give Checkpoint.from_model(model, optimizer)"
)

_Shape = tuple[int, ...] | None


@dataclass(frozen=True)
class _Group:
    """A parameter group of a saved optimizer: a state for each parameter, and their names where it has them."""

    states: list[Mapping[str, Any]]
    names: list[str] | None
    options: Mapping[str, Any]
    made_by: str

    @property
    def shapes(self) -> list[_Shape]:
        return [_shape(state) for state in self.states]


def attach_states(
    tensors: Mapping[str, Tensor], saved: Sequence[Mapping[str, Any]], renamed: Mapping[str, str]
) -> tuple[States, list[str]]:
    """Return saved optimizer state by state-dict key, and a note where it was found but not attached.

    Args:
        tensors: The state dict, in definition order.
        saved: What ``optimizer.state_dict()`` returned, of each optimizer in the file.
        renamed: New key by old key, for states that are saved by name.
    """
    try:
        groups = [group for optimizer in saved for group in _groups(optimizer)]
    except (KeyError, TypeError, AttributeError) as error:
        return {}, [f"the optimizer's state is left out: not as torch saves it ({error!r})"]
    if not any(state for group in groups for state in group.states):
        return {}, []
    keys = _keys(tensors, groups, renamed)
    if keys is None:
        several = f"the file holds {len(saved)} optimizers, and " if len(saved) > 1 else ""
        return {}, [
            f"{several}the optimizer's state is not attached: its parameters cannot be told apart by names, or by "
            f"order and shape. Next step: {_NEXT_STEP}"
        ]
    attached = {
        key: ParameterState(dict(state), group.made_by, group.options, by_order=group.names is None)
        for group, names in zip(groups, keys, strict=True)
        for key, state in zip(names, group.states, strict=True)
        if state
    }
    return _under_all_names(attached, tensors), []


def _groups(saved: Mapping[str, Any]) -> list[_Group]:
    """Take a saved optimizer apart."""
    made_by = str(saved.get("optimizer_class", ""))
    by_id = {
        repr(number): state for number, state in saved["state"].items()
    }  # whose hashes no file can foresee
    groups, listed_ids = [], set[str]()
    for group in saved["param_groups"]:
        ids = list(group["params"])
        listed_ids.update(map(repr, ids))
        names = group.get("param_names") or (ids if all(isinstance(number, str) for number in ids) else None)
        states = [by_id.get(repr(number)) or {} for number in ids]
        if not all(isinstance(each, Mapping) for each in states):
            raise TypeError("a state that is no dict")
        states = [{name: value for name, value in each.items() if value is not None} for each in states]
        if names is not None and len(names) != len(ids):
            raise TypeError("not one name per parameter")
        groups.append(_Group(states, names and list(names), own_options(group), made_by))
    if stray := by_id.keys() - listed_ids:
        raise TypeError(f"states of no parameter: {listed(sorted(stray))}")
    return groups


def _keys(
    tensors: Mapping[str, Tensor], groups: Sequence[_Group], renamed: Mapping[str, str]
) -> list[list[str]] | None:
    """Return the keys of each group's parameters, or ``None`` where more than one answer fits, or none."""
    found = []
    for group in groups:
        if group.names is not None:
            keys: list[str] | None = [renamed.get(name, name) for name in group.names]
        else:
            keys = _keys_by_order(tensors, group.shapes, only_one_group=len(groups) == 1)
        if keys is None or not _agree(tensors, keys, group.shapes):
            return None
        found.append(keys)
    every = [key for keys in found for key in keys]
    return found if len(set(every)) == len(every) else None


def _agree(tensors: Mapping[str, Tensor], keys: Sequence[str], shapes: Sequence[_Shape]) -> bool:
    """Tell whether there are such tensors, of these shapes."""
    return all(
        key in tensors and (shape is None or shape == tuple(tensors[key].shape))
        for key, shape in zip(keys, shapes, strict=True)
    )


def _keys_by_order(
    tensors: Mapping[str, Tensor], shapes: Sequence[_Shape], *, only_one_group: bool
) -> list[str] | None:
    """Return the keys that a group's parameters have, or ``None`` where more than one answer fits.

    Two orders are in use where there is one group: definition order, and weights before biases and norms (the usual
    split for weight decay). Frozen parameters are absent, so the shapes may be found with gaps.
    """
    aliases = {key for group in shared_groups(tensors.items()) for key in group[1:]}
    keys = [key for key in tensors if split_key(key)[1] not in _BUFFERS and key not in aliases]
    matrices = [key for key in keys if tensors[key].ndim > 1]
    vectors = [key for key in keys if tensors[key].ndim <= 1]
    fits: list[list[str]] = []
    for order in (keys, matrices + vectors, vectors + matrices) if only_one_group else (keys,):
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


def _shape(state: Mapping[str, Any]) -> _Shape:
    """Return the shape of a state's parameter, or ``None`` where its states do not tell it."""
    shapes = {name: leaf.shape for name, value in state.items() for leaf in leaves(value) if _has_shape(leaf)}
    whole = [shape for name, shape in shapes.items() if name in ELEMENTWISE]
    try:
        # Adafactor keeps a row (n, 1) and a column (1, m) for a parameter (n, m).
        return tuple(torch.broadcast_shapes(*(whole or shapes.values()))) if shapes else None  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def _has_shape(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _under_all_names(attached: States, tensors: Mapping[str, Tensor]) -> States:
    """Give a tied parameter's state to each of its names: another model may define them in another order."""
    every = dict(attached)
    for names in shared_groups(tensors.items()):
        having = [name for name in names if name in attached]
        every |= {name: attached[having[0]] for name in names if having}
    return {key: every[key] for key in tensors if key in every}
