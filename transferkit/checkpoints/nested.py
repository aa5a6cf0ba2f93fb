"""Find the state dict in what people save: alone, or beside an optimizer, an epoch and a second copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.checkpoints.contents import Contents
from transferkit.checkpoints.optimizer_state import attach_states
from transferkit.checkpoints.parametrizations import parametrized_layers
from transferkit.checkpoints.prefixes import bare_keys
from transferkit.checkpoints.unsupported import check_tensors
from transferkit.errors import CheckpointError, did_you_mean

USUAL_KEYS = (
    *(
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "module",
        "net",
        "network",
        "weights",
        "params",
    ),
    *(
        "model_ema",
        "ema_model",
        "ema",
        "state_dict_ema",
        "ema_state_dict",
        "model_ema_state_dict",
        "params_ema",
    ),
)
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "optimizer_states")
MAX_DEPTH = 3

Path = tuple[str, ...]


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
    candidates = dict(_state_dicts(saved))
    path = _chosen(candidates, key)
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


def _state_dicts(saved: object) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every mapping that looks like a state dict, with its path, each object once.

    A mapping with dotted tensor names is one whatever else it holds (``_extra_state`` may be a dict);
    one with plain names only (``{"model": ..., "best": tensor}``) is one only if there is none inside it.
    """
    seen: set[int] = set()

    def walk(value: object, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if id(value) in seen or not _is_mapping(value) or not all(isinstance(name, str) for name in value):
            return
        seen.add(id(value))
        content = {name: _as_tensor(item) for name, item in value.items()}
        direct = [name for name, item in content.items() if isinstance(item, Tensor)]
        if any("." in name for name in direct):
            yield path, content
            return
        inner = []
        if len(path) < MAX_DEPTH:
            for name, item in value.items():
                if name not in OPTIMIZER_KEYS:
                    inner += list(walk(item, (*path, name)))
        yield from inner
        if direct and not inner:
            yield path, content

    yield from walk(saved, ())


def _as_tensor(value: object) -> object:
    """Return an array of numbers as a tensor over the same memory, anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value)
    return value


def _chosen(candidates: Mapping[Path, object], key: str | None) -> Path:
    """Return the path of the state dict to take."""
    paths = {".".join(path): path for path in candidates}
    if not paths:
        raise CheckpointError("there is no tensor in it, and no state dict under a key")
    if key is not None:
        if key not in paths:
            raise CheckpointError(
                f"no state dict under the key {key!r}{did_you_mean(key, paths)} It has: {list(paths)}"
            )
        return paths[key]
    if len(paths) == 1:
        return next(iter(paths.values()))
    usual = [path for path in candidates if all(part in USUAL_KEYS for part in path)]
    if not usual:
        raise CheckpointError(
            f"it holds several state dicts; say which is meant with key=, one of {list(paths)}"
        )
    return min(usual, key=lambda path: [USUAL_KEYS.index(part) for part in path])


def _choice_note(chosen: Path, candidates: Mapping[Path, object]) -> list[str]:
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


def _parent(saved: object, path: Path) -> Mapping[str, Any]:
    """Return the mapping around the state dict, empty if it stands alone."""
    around: Any = {}
    for part in path:
        around, saved = saved, saved[part] if _is_mapping(saved) else {}
    return around if _is_mapping(around) else {}


def _optimizer_beside(around: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the one optimizer state dict beside a state dict, if there is exactly one."""
    found: list[object] = []
    for key in OPTIMIZER_KEYS:
        value = around.get(key)
        found += value if isinstance(value, list) else [value]
    states = [state for state in found if _is_mapping(state) and "state" in state and "param_groups" in state]
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


def _is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _few(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
