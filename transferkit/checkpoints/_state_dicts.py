"""Find the state dict in a saved object: alone, or beside an optimizer, an epoch and a second copy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import getitem
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from transferkit.checkpoints._inert import Inert
from transferkit.checkpoints._optimizer_state import attach_states
from transferkit.checkpoints._trees import (
    Module,
    OptimizerState,
    Tree,
    is_plain,
    is_tensor,
    leaves,
    put,
    tree_of,
    walk,
)
from transferkit.checkpoints.registry import Contents
from transferkit.errors import CheckpointError, did_you_mean, listed
from transferkit.layers import Layer, are_sorted, layers_of, split_key
from transferkit.memory import DeferredTensor, not_plain

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
_SHOWN_DEPTH = 3  # of the keys that a refusal offers
_LONGEST_VALUE = 4096  # characters of one
_MOST_VALUES = 1000  # plain values that are kept of a file


def contents_of(
    saved: object,
    *,
    key: str | None = None,
    optimizer_state: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Contents:
    """Return the tensors of a saved object with their optimizer state, and the rest as metadata.

    Args:
        saved: A state dict, a module, a tree of dicts, lists and objects, or a lone tensor.
        key: Dotted path of the part to take, empty for all; ``None`` takes the state dict that stands where one
            usually does, else all, and notes what else there is.
        optimizer_state: ``optimizer.state_dict()``; ``None`` looks for one beside the state dict.
        notes: What the reader has to say.

    Raises:
        CheckpointError: There are no tensors, or some that are wanted cannot be read.
    """
    tree = tree_of(saved)
    tree = tree if isinstance(tree, dict) else {"tensor": tree}
    place = _named(tree, key) if key is not None else usual_place(tree)
    found = _inside(tree, place, optimizers=key is not None)
    path = _path(tree, place)
    part = reduce(getitem, path, tree) if path or not place else None  # a place within a module is no part
    _refuse_unreadable(found)
    left = [name for name in found if "._extra_state" in f".{name}"]
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor) and name not in left}
    if not tensors:
        raise CheckpointError("there is no tensor in it, at any depth")
    check_names(tensors)
    optimizers = [optimizer_state] if optimizer_state else _optimizers_beside(saved, tree, place)
    check_tensors(tensors)
    renamed = bare_keys(tensors)
    tensors = {renamed[name]: tensor.detach() for name, tensor in tensors.items()}
    states, note = attach_states(tensors, optimizers, renamed)
    told = [*_choice_note(tree, place), *_leftover_note(found, left, whole=not place)]
    told += [*_prefix_note(renamed), *_parametrization_note(tensors), *_module_note(part)]
    module = part if isinstance(part, Module) else Module("")
    names = {split_key(old)[0]: split_key(new)[0] for old, new in renamed.items()}
    return Contents(
        tensors,
        states,
        (*told, *note, *notes),
        _plain_values(tree, place) | module.attributes.get("", {}),
        paths=_paths(renamed),
        ordered=not are_sorted(list(tensors)),
        kinds={names[name]: kind for name, kind in module.kinds.items() if name in names},
        attributes={names[name]: said for name, said in module.attributes.items() if name in names},
    )


def _paths(renamed: Mapping[str, str]) -> dict[str, str]:
    """Return the layers' names in the file by their names here, where they differ."""
    return {split_key(new)[0]: split_key(old)[0] for old, new in renamed.items() if old != new}


def _choice_note(tree: Tree, place: str) -> list[str]:
    others = [f"key={name!r}" for name in _others(tree, place)]
    if not place and {"state", "param_groups"} <= tree.keys():
        return ["the state of an optimizer, without a model"]
    if not others:
        return []
    if not place:
        return [f"optimizers' states are left out; {listed(others)} reads one"]
    return [f"took the state dict under {place!r}; the file also holds {listed(others)}"]


def _leftover_note(found: Mapping[str, Any], left: list[str], *, whole: bool) -> list[str]:
    others = [name for name, value in found.items() if not isinstance(value, Tensor) and not whole]
    odd = list(dict.fromkeys(f"{name.partition('_extra_state')[0]}_extra_state" for name in left))
    others = [name for name in others if "._extra_state" not in f".{name}"] + odd
    return [f"left out what is not a tensor: {listed(others, 4)}"] if others else []


def _module_note(part: object) -> list[str]:
    if not isinstance(part, Module) or not part.name:
        return []
    told = [f"the parameters and buffers of a pickled module of class {part.name}, which was not made"]
    if part.loose:
        loose = listed(list(part.loose), 4)
        told += [f"left out tensors that are neither parameters nor saved buffers: {loose}"]
    return told


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


def _optimizers_beside(saved: object, tree: Tree, place: str) -> list[Mapping[str, Any]]:
    """Return the optimizers' state dicts beside a state dict, as they were saved."""
    around: Any = saved
    for part in _path(tree, place)[:-1]:
        around = around[part] if is_mapping(around) and part in around else None
    found: list[object] = []
    for key in OPTIMIZER_KEYS if is_mapping(around) else ():
        value = around.get(key)
        found += list(value) if isinstance(value, list | tuple) else [value]
    return [state for state in found if is_mapping(state) and "state" in state and "param_groups" in state]


def _plain_values(tree: Tree, place: str) -> dict[str, Any]:
    """Return the numbers, texts and flags beside a state dict; one-element tensors become numbers."""
    plain: dict[str, Any] = {}
    for name, value in leaves(tree, optimizers=False):
        if len(plain) == _MOST_VALUES:
            break
        if place and f"{name}.".startswith(f"{place}."):
            continue
        if is_plain(value) and len(str(value)) <= _LONGEST_VALUE:
            plain[name] = value
        elif place and isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
            plain[name] = value.item()
    return plain


# Where in a saved object the weights are: under a usual key, or all over it.


def usual_place(tree: Tree) -> str:
    """Return the dotted place of the state dict in a tree, empty where the whole tree is meant.

    A dict with dotted tensor names, and a module, is a state dict. It is taken where a usual key, or nothing but it,
    leads to it. Whatever else holds tensors has no one place, so all of it is meant.
    """
    holding: set[int] = set()
    _holds_weights(tree, holding)
    return ".".join(_home(tree, (), holding) or ())


def _home(tree: Tree, path: tuple[str, ...], holding: set[int]) -> tuple[str, ...] | None:
    if isinstance(tree, Module) or any("." in name and _is_weight(value) for name, value in tree.items()):
        return path
    held = [name for name, value in tree.items() if _is_weight(value) or id(value) in holding]
    usual = [key for key in USUAL_KEYS if key in held and isinstance(tree[key], dict)]
    for key in usual:
        inner = _home(tree[key], (*path, key), holding)
        if inner or set(held) <= set(USUAL_KEYS):
            return inner or (*path, key)
    alone = len(held) == 1 and isinstance(tree[held[0]], dict)
    return _home(tree[held[0]], (*path, held[0]), holding) if alone and not usual else None


def _is_weight(value: object) -> bool:
    """Whether a leaf may be a weight: a tensor with dimensions; others are counts, scores and the like."""
    return is_tensor(value) and (not isinstance(value, Tensor) or value.ndim > 0)


def _holds_weights(value: object, holding: set[int]) -> bool:
    """Whether a part of a tree holds weights other than an optimizer's; dicts that do are added to ``holding``."""
    if not isinstance(value, dict) or isinstance(value, OptimizerState):
        return _is_weight(value)
    held = [_holds_weights(item, holding) for item in value.values()]
    if any(held):
        holding.add(id(value))
    return id(value) in holding


def _path(tree: Tree, place: str) -> list[str]:
    """Return the keys that lead to a place, which may have dots in them."""
    for name, item in tree.items():
        if name == place:
            return [name]
        rest = place.removeprefix(f"{name}.")
        if isinstance(item, dict) and rest != place and (path := _path(item, rest)):
            return [name, *path]
    return []


def _inside(tree: Tree, place: str, *, optimizers: bool = True) -> dict[str, Any]:
    """Return the leaves at and below a place by their names from there."""
    found: dict[str, Any] = {}
    for name, leaf in leaves(tree, optimizers=optimizers):
        if not place or name.startswith(f"{place}."):
            put(found, name[len(place) + 1 :] if place else name, leaf)
        elif name == place:
            put(found, name.rpartition(".")[2], leaf)
    return found


def _others(tree: Tree, place: str) -> list[str]:
    """Return the places of what else holds tensors, none of them within another."""
    path, found, above = _path(tree, place), list[str](), ""
    for part in path:
        for name, value in tree.items():
            held = leaves(value, optimizers=name not in OPTIMIZER_KEYS)  # those that are attached
            if name != part and any(_is_weight(leaf) for _, leaf in held):
                found.append(f"{above}{name}")
        tree, above = tree[part], f"{above}{part}."
    if not path:
        found = [name for name, value in walk(tree) if name and isinstance(value, OptimizerState)]
        found = [name for name in found if name.partition(".")[0] not in OPTIMIZER_KEYS]
    return found


def _named(tree: Tree, key: str) -> str:
    """Return the place that a caller names, if there are tensors.

    Raises:
        CheckpointError: There are none.
    """
    if any(map(is_tensor, _inside(tree, key).values())):
        return key
    parts = [name.split(".")[:-1][:_SHOWN_DEPTH] for name, leaf in leaves(tree) if is_tensor(leaf)]
    shown = [".".join(part[:depth]) for depth in range(1, 1 + _SHOWN_DEPTH) for part in parts]
    holding = [name for name in dict.fromkeys(shown) if name]
    raise CheckpointError(
        f"no tensors under the key {key!r}{did_you_mean(key, holding)} It has: {listed(list(map(repr, holding)))}"
    )


def _refuse_unreadable(found: Mapping[str, Any]) -> None:
    odd = {name: leaf.unreadable for name, leaf in found.items() if isinstance(leaf, Inert) and leaf.unreadable}
    wrong = [f"{name} ({what})" for name, what in odd.items()]
    if wrong:
        raise CheckpointError(f"not plain tensors: {listed(wrong, 3)}. {_ADVICE}.")


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a mapping with names for keys."""
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


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
    bare = bare_names(names, _inside_wrapper if tuned else bare_name)
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


def _inside_wrapper(name: str) -> str:
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


LONGEST_NAME = 4096  # characters
_MOST_NAMES = 200_000  # tensors; the largest models have half as many, and each takes some kilobytes here
LARGEST_NAMES = 1 << 25  # characters of all together


def check_names(names: Collection[str]) -> None:
    """Refuse names that no model has, since every one is copied many times on its way into a layer.

    Raises:
        CheckpointError: One is too long, or there are too many.
    """
    longest, total = max(map(len, names), default=0), sum(map(len, names))
    if longest > LONGEST_NAME:
        raise CheckpointError(f"refused: the name of a tensor has {longest:,} characters")
    if len(names) > _MOST_NAMES or total > LARGEST_NAMES:
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
    if type(tensor) not in (Tensor, DeferredTensor, torch.nn.Parameter, torch.nn.Buffer):
        return type(tensor).__name__
    return next((what for mark, what in _PACKED.items() if key.endswith(mark)), "")
