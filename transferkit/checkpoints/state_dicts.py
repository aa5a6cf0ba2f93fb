"""Which of the dicts inside what was saved are state dicts, and which of them is meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

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

KeyPath = tuple[str, ...]


def state_dicts_in(saved: object) -> dict[KeyPath, dict[str, Any]]:
    """Return every state dict in what was saved, by the keys that lead to it.

    A dict with dotted tensor names is one, whatever else it holds. One with plain names is one if it stands alone
    or under a usual key; elsewhere it is the state of something else, of a sampler or a scheduler.
    """
    found = dict(_dicts_of_tensors(saved, (), []))
    dotted = {path for path, content in found.items() if _has_dotted_names(content)}
    usual = {path for path in found if path and all(part in USUAL_KEYS for part in path)}
    return {path: content for path, content in found.items() if path in dotted | usual or not dotted | usual}


def choose(candidates: Mapping[KeyPath, object], key: str | None) -> KeyPath:
    """Return the keys of the state dict that is meant.

    Args:
        candidates: As found.
        key: The caller's choice, dotted; ``None`` takes the only one, or the one under the most usual key.

    Raises:
        CheckpointError: There is none, or not the one asked for, or nothing tells which is meant.
    """
    paths = {".".join(path): path for path in candidates}
    if not paths:
        raise CheckpointError("there is no tensor in it, and no state dict under a key")
    if key is not None:
        if key not in paths:
            hint = did_you_mean(key, paths)
            raise CheckpointError(f"no state dict under the key {key!r}{hint} It has: {list(paths)}")
        return paths[key]
    if len(paths) == 1:
        return next(iter(paths.values()))
    usual = [path for path in candidates if path and all(part in USUAL_KEYS for part in path)]
    if not usual:
        raise CheckpointError(
            f"it holds several state dicts; say which is meant with key=, one of {list(paths)}"
        )
    return min(usual, key=lambda path: [USUAL_KEYS.index(part) for part in path])


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a mapping with names for keys."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _dicts_of_tensors(
    value: object, path: KeyPath, seen: list[object]
) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield the dicts that directly hold tensors, each object once, a dict after those inside it."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if any(value is other for other in seen) or not is_mapping(value):
        return
    seen.append(value)
    content = {name: as_tensor(item) for name, item in value.items()}
    inner = []
    if len(path) < MAX_DEPTH and not _has_dotted_names(content):
        for name, item in value.items():
            if name not in OPTIMIZER_KEYS:
                inner += list(_dicts_of_tensors(item, (*path, name), seen))
    yield from inner
    if not inner and any(isinstance(item, Tensor) for item in content.values()):
        yield path, content


def _has_dotted_names(content: Mapping[str, object]) -> bool:
    return any("." in name and isinstance(item, Tensor) for name, item in content.items())


def as_tensor(value: object) -> object:
    """Return an array of numbers as a tensor, over the same memory if it can be; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        return value
    plain = np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())
