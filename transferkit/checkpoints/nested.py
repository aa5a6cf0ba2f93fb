"""Find the state dict in what people save: alone, or beside an optimizer, an epoch and a second copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from transferkit.checkpoints.contents import Contents
from transferkit.checkpoints.optimizer_state import attach_states
from transferkit.checkpoints.parametrizations import parametrized_layers
from transferkit.checkpoints.prefixes import bare_keys
from transferkit.checkpoints.state_dicts import OPTIMIZER_KEYS, KeyPath, choose, is_mapping, state_dicts_in
from transferkit.checkpoints.unsupported import check_tensors


def contents_of(
    saved: object, *, key: str | None = None, optimizer_state: Mapping[str, Any] | None = None
) -> Contents:
    """Return the tensors of whatever was saved, the optimizer's state attached to them, the rest as metadata.

    Args:
        saved: A state dict, a module, or a dict that holds one of them.
        key: Dotted path of the state dict to take; ``None`` takes the usual one and notes the others.
        optimizer_state: ``optimizer.state_dict()``; ``None`` looks for one beside the state dict.

    Raises:
        CheckpointError: There are no tensors, or several sets of them with nothing to tell which is meant.
    """
    candidates = state_dicts_in(saved)
    path = choose(candidates, key)
    found = candidates[path]
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    notes = [*_choice_note(path, candidates), *_leftover_note(found)]
    beside = _parent(saved, path)
    if optimizer_state is None:
        optimizer_state = _optimizer_beside(beside)
    check_tensors(tensors)
    renamed = bare_keys(tensors)
    notes += _prefix_note(renamed) + _parametrization_note(tensors)
    tensors = {renamed[name]: tensor.detach() for name, tensor in tensors.items()}
    states, note = attach_states(tensors, optimizer_state, renamed)
    return Contents(tensors, states, (*notes, *note), _plain_values(beside))


def _choice_note(chosen: KeyPath, candidates: Mapping[KeyPath, object]) -> list[str]:
    others = [".".join(path) for path in candidates if path != chosen]
    if not others:
        return []
    offered = ", ".join(f"key={other!r}" for other in others)
    return [f"took the state dict under {'.'.join(chosen)!r}; the file also holds {offered}"]


def _leftover_note(found: Mapping[str, Any]) -> list[str]:
    others = [name for name, value in found.items() if not isinstance(value, Tensor)]
    return [f"left out what is no tensor: {_few(others)}"] if others else []


def _prefix_note(renamed: Mapping[str, str]) -> list[str]:
    changed = [old for old, new in renamed.items() if old != new]
    return (
        [f"set aside the prefixes of wrappers, as in {changed[0]!r} -> {renamed[changed[0]]!r}"]
        if changed
        else []
    )


def _parametrization_note(tensors: Mapping[str, Tensor]) -> list[str]:
    found = parametrized_layers(tensors)
    if not found:
        return []
    layers = _few([f"{name} ({scheme})" for name, scheme in found.items()])
    return [
        f"weights stored in parts, which fit only a layer parametrized alike: {layers}. To have plain ones, "
        "undo it before saving (remove_parametrizations, remove_weight_norm, prune.remove and the like)"
    ]


def _parent(saved: object, path: KeyPath) -> Mapping[str, Any]:
    """Return the mapping around the state dict, empty if it stands alone."""
    around: Any = {}
    for part in path:
        around, saved = saved, saved[part] if is_mapping(saved) else {}
    return around if is_mapping(around) else {}


def _optimizer_beside(around: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the one optimizer state dict beside a state dict, if there is exactly one."""
    found: list[object] = []
    for key in OPTIMIZER_KEYS:
        value = around.get(key)
        found += value if isinstance(value, list) else [value]
    states = [state for state in found if is_mapping(state) and "state" in state and "param_groups" in state]
    return states[0] if len(states) == 1 else None


def _plain_values(around: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, strings and flags beside a state dict; one-element tensors become numbers."""
    plain = {}
    for name, value in around.items():
        if isinstance(value, str | int | float | bool):
            plain[name] = value
        elif isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
            plain[name] = value.item()
    return plain


def _few(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
