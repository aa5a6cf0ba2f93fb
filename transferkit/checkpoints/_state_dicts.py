"""Find the state dict in a saved object: alone, or beside an optimizer, an epoch and a second copy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.checkpoints._optimizer_state import attach_states
from transferkit.checkpoints.registry import Contents
from transferkit.errors import CheckpointError, did_you_mean, listed
from transferkit.layers import Layer, are_sorted, layers_of, split_key
from transferkit.memory import not_plain

WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"}
)

# Keys of a state dict inside a saved dict, the most usual first; those of an EMA come last.
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
MAX_DEPTH = 3  # keys from the saved object to a state dict

# Suffix of a packed weight's name, and who packed it.
_PACKED = {
    ".qweight": "GPTQ or AWQ packed weights",
    ".quant_state.bitsandbytes__nf4": "bitsandbytes 4-bit weights",
    ".quant_state.bitsandbytes__fp4": "bitsandbytes 4-bit weights",
    ".SCB": "bitsandbytes 8-bit weights",
    "._packed_params": "torch's packed quantized weights",
    "_flat_param": "flattened FSDP shards",
}

_ADVICE = (
    "Load the file with the library that wrote it, make them plain with dequantize(), full_tensor() or to_dense(), "
    "save that and read it"
)
KeyPath = tuple[str, ...]


def contents_of(
    saved: object, *, key: str | None = None, optimizer_state: Mapping[str, Any] | None = None
) -> Contents:
    """Return the tensors of a saved object with their optimizer state, and the rest as metadata.

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
    check_names(tensors)
    notes = [*_choice_note(path, candidates), *_leftover_note(found)]
    beside = _parent(saved, path)
    optimizers = [optimizer_state] if optimizer_state else _optimizers_beside(beside)
    check_tensors(tensors)
    renamed = bare_keys(tensors)
    notes += _prefix_note(renamed) + _parametrization_note(tensors)
    tensors = {renamed[name]: tensor.detach() for name, tensor in tensors.items()}
    states, note = attach_states(tensors, optimizers, renamed)
    return Contents(
        tensors,
        states,
        (*notes, *note),
        _plain_values(beside),
        paths=_paths(renamed),
        ordered=not are_sorted(list(tensors)),
    )


def _paths(renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the layers' names in the file by their names here, where they differ."""
    return {split_key(new)[0]: split_key(old)[0] for old, new in renamed.items() if old != new}


def _choice_note(chosen: KeyPath, candidates: Mapping[KeyPath, object]) -> list[str]:
    others = [f"key={'.'.join(path)!r}" for path in candidates if path != chosen]
    if not others:
        return []
    offered = listed(others)
    return [f"took the state dict under {'.'.join(chosen)!r}; the file also holds {offered}"]


def _leftover_note(found: Mapping[str, Any]) -> list[str]:
    others = [name for name, value in found.items() if not isinstance(value, Tensor)]
    return [f"left out what is not a tensor: {listed(others, 4)}"] if others else []


def _prefix_note(renamed: Mapping[str, str]) -> list[str]:
    changed = [old for old, new in renamed.items() if old != new]
    if not changed:
        return []
    return [f"set aside the prefixes of wrappers, as in {changed[0]!r} -> {renamed[changed[0]]!r}"]


def _parametrization_note(tensors: Mapping[str, Tensor]) -> list[str]:
    found = parametrized_layers(tensors)
    if not found:
        return []
    layers = listed([f"{name} ({scheme})" for name, scheme in found.items()], 4)
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


def _optimizers_beside(around: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the optimizers' state dicts beside a state dict."""
    found: list[object] = []
    for key in OPTIMIZER_KEYS:
        value = around.get(key)
        found += list(value) if isinstance(value, list | tuple) else [value]
    return [state for state in found if is_mapping(state) and "state" in state and "param_groups" in state]


def _plain_values(around: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, strings and flags beside a state dict; one-element tensors become numbers."""
    plain = {}
    for name, value in around.items():
        if isinstance(value, str | int | float | bool):
            plain[name] = value
        elif isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
            plain[name] = value.item()
    return plain


# Finding the state dicts inside what was saved, and choosing the one that is meant.


def state_dicts_in(saved: object) -> dict[KeyPath, dict[str, Any]]:
    """Return every state dict in a saved object, by the keys that lead to it.

    A dict with dotted tensor names counts, whatever else it holds. A dict with plain names counts if it stands
    alone or under a usual key; elsewhere it is the state of something else, such as a sampler or a scheduler.
    """
    found = dict(_dicts_of_tensors(saved, (), {}))
    dotted = {path for path, content in found.items() if _has_dotted_names(content)}
    usual = {path for path in found if path and all(part in USUAL_KEYS for part in path)}
    return {path: content for path, content in found.items() if path in dotted | usual or not dotted | usual}


def _dicts_of_tensors(
    value: object, path: KeyPath, seen: dict[int, object]
) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield the dicts that directly hold tensors, each object once, a dict after those inside it."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if id(value) in seen or not is_mapping(value):
        return
    seen[id(value)] = value  # kept, so that no other object gets its id
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


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a mapping with names for keys."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def as_tensor(value: object) -> object:
    """Return an array of numbers as a tensor, over the same memory if it can be; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        return value
    plain = np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


def choose(candidates: Mapping[KeyPath, object], key: str | None) -> KeyPath:
    """Return the keys of the state dict that is meant.

    Args:
        candidates: State dicts by the keys that lead to them.
        key: The caller's choice, dotted; ``None`` takes the only one, or the one under the most usual key.

    Raises:
        CheckpointError: There is none, or not the one asked for, or nothing tells which is meant.
    """
    paths = {".".join(path): path for path in candidates}
    if not paths:
        raise CheckpointError("it holds no tensors, neither directly nor in a state dict under a key")
    if key is not None:
        if key not in paths:
            hint = did_you_mean(key, paths)
            raise CheckpointError(
                f"no state dict under the key {key!r}{hint} It has: {listed(list(map(repr, paths)))}"
            )
        return paths[key]
    if len(paths) == 1:
        return next(iter(paths.values()))
    usual = [path for path in candidates if path and all(part in USUAL_KEYS for part in path)]
    if not usual:
        raise CheckpointError(
            f"it holds several state dicts; say which is meant with key=, one of {listed(list(map(repr, paths)))}"
        )
    return min(usual, key=lambda path: [USUAL_KEYS.index(part) for part in path])


# Names without what wrappers (DDP, torch.compile, FSDP) put into them.


def bare_name(name: str) -> str:
    """Return a dotted layer name without the parts that a wrapper added.

    Example:
        >>> bare_name("module._orig_mod.encoder.module.conv")
        'encoder.conv'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def bare_names(names: Iterable[str], bare_name: Callable[[str], str] = bare_name) -> dict[str, str]:
    """Return each layer name with its bare name, or with itself where two layers would share a bare name.

    Example:
        >>> bare_names(["module.conv", "module.fc", "fc"])
        {'module.conv': 'conv', 'module.fc': 'module.fc', 'fc': 'fc'}
    """
    bare = {name: bare_name(name) for name in names}
    shared = {name for name, count in Counter(bare.values()).items() if count > 1}
    return {name: name if short in shared else short for name, short in bare.items()}


def bare_layers(model: nn.Module) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return a live model's layers under their bare names, and which prefixes were set aside.

    Of a model with PEFT's adapters they are those of the network inside, and the adapters' own, marked so.
    """
    layers = layers_of(model)
    tuned = [name for name, module in model.named_modules() if type(module).__module__.startswith("peft.")]
    names = [layer.name for layer in layers]
    bare = bare_names(names, _inside if tuned else bare_name)
    set_aside = dict.fromkeys(
        f"{part}."
        for long, short in bare.items()
        for part in long.split(".")
        if long != short and part not in short.split(".")
    )
    named = tuple(
        replace(layer, name=bare[layer.name], path=layer.name) if bare[layer.name] != layer.name else layer
        for layer in layers
    )
    return tuple(_marked(layer, tuned) for layer in named), tuple(set_aside)


def _inside(name: str) -> str:
    """Return the name that a layer has in the network that PEFT wrapped."""
    bare = bare_name(name).removeprefix("base_model.model.")
    return re.sub(r"(^|\.)base_layer(?=\.|$)|\.modules_to_save\.[^.]+(?=\.|$)", "", bare)


def _marked(layer: Layer, tuned: Sequence[str]) -> Layer:
    """Mark what is an adapter's own: in a module of PEFT, and neither what that wraps nor what stands for it."""
    path = layer.path or layer.name
    owner = max((name for name in tuned if name and path.startswith(f"{name}.")), key=len, default="")
    part = path.removeprefix(f"{owner}.").partition(".")[0]
    if not owner or part in ("model", "base_layer", "modules_to_save"):
        return layer
    return replace(layer, attributes={**layer.attributes, "adapter": True})


def bare_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return each state-dict key with its key under the layer's bare name.

    Example:
        >>> bare_keys(["module.fc.weight", "module.fc.bias"])
        {'module.fc.weight': 'fc.weight', 'module.fc.bias': 'fc.bias'}
    """
    parts = {key: split_key(key) for key in keys}
    names = bare_names(dict.fromkeys(name for name, _ in parts.values()))
    return {key: f"{names[name]}.{short}" if names[name] else short for key, (name, short) in parts.items()}


# Weights stored in parts, and tensors that no layer can take.


def parametrized_layers(keys: Iterable[str]) -> dict[str, str]:
    """Return the layers whose weights are stored in parts, with the name of the parametrization.

    Example:
        >>> parametrized_layers(["conv.weight_g", "conv.weight_v", "conv.bias"])
        {'conv': 'weight norm'}
        >>> parametrized_layers(["fc.parametrizations.weight.original0"])
        {'fc': 'parametrization'}
    """
    keys = set(keys)
    found = {}
    for key in sorted(keys):
        layer, short = split_key(key)
        if short.startswith("parametrizations."):
            found[layer] = "parametrization"
        elif key.endswith("_g") and f"{key[:-2]}_v" in keys:
            found[layer] = "weight norm"
        elif key.endswith("_orig") and (f"{key[:-5]}_u" in keys or f"{key[:-5]}_mask" in keys):
            found[layer] = "spectral norm" if f"{key[:-5]}_u" in keys else "pruning"
    return found


_LONGEST_NAME = 4096  # characters
_MOST_NAMES = 200_000  # tensors; the largest models have half as many, and each takes some kilobytes here
_LARGEST_NAMES = 1 << 25  # characters of all together


def check_names(names: Collection[str]) -> None:
    """Refuse names that no model has, since every one is copied many times on its way into a layer.

    Raises:
        CheckpointError: One is too long, or there are too many.
    """
    longest, total = max(map(len, names), default=0), sum(map(len, names))
    if longest > _LONGEST_NAME:
        raise CheckpointError(f"refused: the name of a tensor has {longest:,} characters")
    if len(names) > _MOST_NAMES or total > _LARGEST_NAMES:
        raise CheckpointError(f"refused: {len(names):,} tensors, whose names have {total:,} characters")


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not plain and dense, naming each.

    Raises:
        CheckpointError: Some are quantized, packed, sparse, nested or of a tensor subclass.
    """
    wrong = [f"{key} ({what})" for key, tensor in tensors.items() if (what := _obstacle(key, tensor))]
    if wrong:
        raise CheckpointError(f"not plain tensors: {listed(wrong, 3)}. {_ADVICE}.")


def _obstacle(key: str, tensor: Tensor) -> str:
    """Return what keeps a tensor from being used, or an empty string."""
    if what := not_plain(tensor):
        return what
    if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
        return type(tensor).__name__
    return next((what for mark, what in _PACKED.items() if key.endswith(mark)), "")
