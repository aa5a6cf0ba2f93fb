"""Keras's layers: which tensors are each one's by the model's description, and the same in torch's conventions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from posixpath import commonpath
from typing import Any

import torch
from torch import Tensor

from transferkit.checkpoints.layouts import KINDS, LAYOUTS, WHY_NOT, sources_of, turned

# What switches a variable of a layer off where it is false.
_SWITCHES = {"gamma": "scale", "beta": "center", "bias": "use_bias"}
_SUB_LAYER = re.compile(r"_?(query|key|value|(?:attention_)?output|forward|backward)(?:_.*)?")
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_MIRROR = {"forward": "_l0", "backward": "_l0_reverse"}


@dataclass(frozen=True)
class Described:
    """A layer as the model's description has it.

    Attributes:
        name: Dotted, with the names of the models that it is nested in.
        class_name: Keras's class, without what wraps it (TimeDistributed, Bidirectional).
        config: The arguments of the class.
        tensors: Its tensors under Keras's names, ``"kernel"``, ``"query.kernel"``, ``"forward.bias"``.
        paths: Their paths in the file.
        wrapper: The arguments of what wraps it.
    """

    name: str
    class_name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    wrapper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind under which the table of layouts has the layer, or an empty string."""
        return KINDS.get(("keras", self.class_name), "")


@dataclass(frozen=True)
class Converted:
    """A layer in torch's conventions; its tensors' names may lead to layers inside it (``depthwise.weight``)."""

    name: str
    tensors: Mapping[str, Tensor]
    attributes: Mapping[str, Mapping[str, Any]]
    kind: str = ""
    problem: str = ""


def layers_in(model: Any) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Return (name, class, arguments, entry) of each layer that a description of a model or wrapper lists."""
    config = model.get("config") if isinstance(model, Mapping) else None
    entries = config.get("layers") if isinstance(config, Mapping) else config
    found = []
    for entry in entries if isinstance(entries, list) else []:
        own = entry.get("config") if isinstance(entry, dict) else None
        arguments = own if isinstance(own, dict) else {}
        if isinstance(entry, dict):
            name = arguments.get("name") or entry.get("name") or ""
            found.append((str(name), str(entry.get("class_name", "")), arguments, entry))
    return found


def unwrapped(class_name: str, config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Return the class and arguments of what a wrapper wraps, and the wrapper's own arguments."""
    wrapper: Mapping[str, Any] = {}
    if class_name in ("TimeDistributed", "Bidirectional") and isinstance(config.get("layer"), Mapping):
        inner, wrapper = config["layer"], {"wrapper": class_name, "merge_mode": config.get("merge_mode")}
        own = inner.get("config")
        class_name, config = str(inner.get("class_name", "")), own if isinstance(own, Mapping) else {}
    if class_name == "RNN" and isinstance(config.get("cell"), Mapping):
        inner = config["cell"]
        own = inner.get("config")
        class_name = str(inner.get("class_name", "")).removesuffix("Cell")
        config = own if isinstance(own, Mapping) else {}
    return class_name, config, wrapper


# Which tensors are a layer's. Keras 2 and the older files of Keras 3 name them; since then they are numbered, in
# folders called after the layers' classes.


def described(
    model: Mapping[str, Any], weights: Mapping[str, Tensor], texts: Mapping[Any, Any]
) -> list[Described]:
    """Return the layers of a model's description that own tensors, in its order.

    Args:
        model: The description, as JSON has it.
        weights: Tensors by path in the file.
        texts: The file's attributes by path and name.
    """
    numbered = any("vars" in path.split("/") for path in weights)
    below = _below(weights, numbered=numbered)
    named = {
        (path.removesuffix("/vars").rpartition("/")[0], text): path.removesuffix("/vars")
        for (path, name), text in texts.items()
        if name == "name" and path.endswith("/vars") and isinstance(text, str)
    }
    found = []
    for name, class_name, config, place in _leaves(model, "", "", named if numbered else None):
        kind_of, own, wrapper = unwrapped(class_name, config)
        paths = tuple(below.get(place, ()))
        layer = Described(name, kind_of, own, {}, paths, wrapper)
        names = [_name_in_keras(layer, path) for path in paths]
        if len(set(names)) == len(names):
            tensors = {short: weights[path] for short, path in zip(names, paths, strict=True)}
            found.append(replace(layer, tensors=tensors))
    return found


def undescribed(weights: Mapping[str, Tensor], texts: Mapping[Any, Any]) -> list[Described]:
    """Return the layers of tensors that no description mentions, in the order that the file gives them.

    Where layers stand in a folder that is called after their class, that tells what they are.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for path in weights:
        places[_place(path)].append(path)
    listed_names = texts.get(("", "layer_names"))
    order = {name: number for number, name in enumerate(listed_names if isinstance(listed_names, list) else ())}
    tops = {top: commonpath(map(_place, paths)) for top, paths in _by_top(weights).items()}
    found = []
    for place, paths in sorted(places.items(), key=lambda item: order.get(item[0].split("/")[0], len(order))):
        if all("vars" not in path.split("/") for path in paths):
            top = place.split("/")[0]
            names = [re.sub(r":\d+$", "", path.rpartition("/")[2]) for path in paths]
            name = f"{top}{place.removeprefix(tops[top])}"
            tensors = {short: weights[path] for short, path in zip(names, paths, strict=True)}
            found.append(Described(plain_name(name), "", {}, tensors, tuple(paths)))
        else:
            found.append(_of_numbered(place, paths, weights, texts))
    return found


def _by_top(weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    tops: dict[str, list[str]] = defaultdict(list)
    for path in weights:
        tops[path.split("/")[0]].append(path)
    return tops


def _place(path: str) -> str:
    """Return the folder of the layer that a tensor belongs to."""
    *folders, _ = path.split("/")
    if folders[-1:] == ["vars"]:
        folders.pop()
        if "layers" in folders[:-1]:
            return "/".join(folders[: len(folders) - folders[::-1].index("layers") + 1])
    return "/".join(folders)


def _of_numbered(
    place: str, paths: Sequence[str], weights: Mapping[str, Tensor], texts: Mapping[Any, Any]
) -> Described:
    """Return a layer whose variables are numbered, by the class that its folder is called after."""
    parts = place.split("/")
    # Names are given to layers by their model; an attribute's own name says more than "conv2d_3".
    told = {n: texts.get(("/".join([*parts[: n + 1], "vars"]), "name")) for n in range(len(parts))}
    named = [told[n] or part if parts[n - 1 : n] == ["layers"] else part for n, part in enumerate(parts)]
    names = [name for name, part in zip(named, parts, strict=True) if part not in _CONTAINERS]
    folder = re.sub(r"_\d+$", "", parts[-1]) if parts[-2:-1] == ["layers"] else ""
    class_name = _BY_FOLDER.get(folder, "")
    own: dict[str, Any] = {
        "reset_after": any(weights[path].ndim == 2 and path.endswith("/2") for path in paths)
    }
    layer = Described(".".join(map(plain_name, names)), class_name, own, {}, tuple(paths))
    tensors = {_name_in_keras(layer, path): weights[path] for path in paths}
    wanted = variables(layer.kind, own)
    if len(tensors) == len(paths) and {*wanted} - {"bias"} <= {name.rpartition(".")[2] for name in tensors}:
        return replace(layer, tensors=tensors)
    numbers = {
        path.removeprefix(f"{place}/").replace("vars/", "").replace("/", "."): weights[path] for path in paths
    }
    return replace(layer, class_name="", tensors=numbers)


def _below(weights: Mapping[str, Tensor], *, numbered: bool) -> dict[Any, list[str]]:
    """Return the paths below each place: a folder, or in files with names a group and a part of the path in it."""
    below: dict[Any, list[str]] = defaultdict(list)
    for path in weights:
        parts = path.split("/")
        if numbered:
            for depth in range(1, len(parts)):
                below["/".join(parts[:depth])].append(path)
        else:
            for part in {"", *parts[1:-1]}:
                below[parts[0], part].append(path)
    return below


def _leaves(
    model: Any, place: Any, prefix: str, named: Mapping[Any, str] | None
) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """Yield the layers that hold no others: dotted name, class, arguments, place in the file."""
    counts: Counter[str] = Counter()
    for name, class_name, config, entry in layers_in(model):
        folder = snake(class_name)
        counts[folder] += 1
        folder += f"_{counts[folder] - 1}" if counts[folder] > 1 else ""
        if named is None:
            here: Any = (place[0], name) if place else (name, "")
        else:
            here = named.get((f"{place}layers", name)) or f"{place}layers/{folder}"
        dotted = f"{prefix}{plain_name(name or folder)}"
        if class_name == "TimeDistributed" and layers_in(config.get("layer")):
            entry, here = config["layer"], here if named is None else f"{here}/layer"
        if layers_in(entry):
            yield from _leaves(entry, here if named is None else f"{here}/", f"{dotted}.", named)
        else:
            yield dotted, class_name, config, here


def plain_name(name: str) -> str:
    """Return a name that can be part of a dotted path."""
    return re.sub(r"[.\s]+", "_", name).strip("/").replace("/", ".")


def snake(class_name: str) -> str:
    """Return what Keras calls the folder of a class: ``"Conv2DTranspose" -> "conv2d_transpose"``."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _name_in_keras(layer: Described, path: str) -> str:
    """Return Keras's name of a tensor: ``"layers/conv2d/vars/0" -> "kernel"``."""
    *folders, last = path.split("/")
    last = re.sub(r":\d+$", "", last)
    if last.isdigit() and folders[-1:] == ["vars"]:
        order = variables(layer.kind, layer.config)
        last = order[int(last)] if int(last) < len(order) else last
    if layer.kind != "MultiheadAttention" and layer.wrapper.get("wrapper") != "Bidirectional":
        return last
    parts = [match[1] for folder in reversed(folders) if (match := _SUB_LAYER.fullmatch(folder))]
    return f"{parts[0].removeprefix('attention_')}.{last}" if parts else last


def variables(kind: str, config: Mapping[str, Any]) -> list[str]:
    """Return the names of a layer's variables in the order of their numbers, without those that are switched off."""
    row = LAYOUTS.get(("keras", kind), {})
    names = dict.fromkeys(name.rpartition(".")[2] for name in sources_of(row))
    return [name for name in names if config.get(_SWITCHES.get(name, "")) is not False]


_BY_FOLDER = {snake(class_name): class_name for format, class_name in KINDS if format == "keras"}


# One layer in torch's conventions.


def converted(layer: Described) -> Converted:
    """Return a layer's tensors under torch's names; as they are where torch has no layer that computes the same."""
    kind = layer.kind
    if not layer.tensors:
        return Converted(layer.name, {}, {})
    problem = _obstacle(layer)
    if not kind or problem:
        what = f"{layer.name} ({layer.class_name or 'class unknown'})"
        return Converted(layer.name, layer.tensors, {}, "other", what + problem)
    if kind == "MultiheadAttention" and not _is_one_matrix(layer.tensors):
        kind = "attention"
    row = LAYOUTS["keras", kind]
    tensors = turned(layer.tensors, row)
    if layer.wrapper.get("wrapper") == "Bidirectional":
        tensors = {
            name.replace("_l0", suffix): tensor
            for side, suffix in _MIRROR.items()
            for name, tensor in turned(_under(layer.tensors, side), row).items()
        }
    if kind in ("_NormBase", "GroupNorm", "LayerNorm"):
        tensors = _with_both(tensors, kind)
    house = {"Embedding": "embedding", "PReLU": "other"}.get(kind, "")
    return Converted(layer.name, tensors, _attributes(layer, kind), house)


def _under(tensors: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{side}."): t for name, t in tensors.items() if name.startswith(f"{side}.")}


def _with_both(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return a norm with both scale and shift where Keras has one alone, which torch's have not."""
    if "bias" in tensors and "weight" not in tensors:
        return {"weight": torch.ones_like(tensors["bias"]), **tensors}
    if "weight" in tensors and "bias" not in tensors and kind != "LayerNorm":
        return {"weight": tensors["weight"], "bias": torch.zeros_like(tensors["weight"]), **tensors}
    return tensors


def _obstacle(layer: Described) -> str:
    """Say what keeps a layer from being one of torch's, or return an empty string."""
    kind, config = layer.kind, layer.config
    wanted = {*variables(kind, config)}
    there = {name.rpartition(".")[2] for name in layer.tensors}
    known = {
        name.rpartition(".")[2] for name in sources_of(LAYOUTS.get(("keras", kind), {}), alternatives=True)
    }
    if kind and not there <= wanted | known:
        return f": it also has {', '.join(sorted(there - wanted - known))}"
    if kind == "GRU" and not config.get("reset_after", False):
        return f": {WHY_NOT['keras', 'GRU']}"
    if kind in ("LSTM", "GRU"):
        gates = (config.get("activation", "tanh"), config.get("recurrent_activation", "sigmoid"))
        if gates != ("tanh", "sigmoid"):
            return f": torch's {kind} has tanh and sigmoid, this one {gates[0]} and {gates[1]}"
    if kind == "RNN" and config.get("activation", "tanh") not in ("tanh", "relu"):
        return f": torch's RNN has tanh or relu, this one {config['activation']}"
    if kind == "PReLU" and any(max(t.shape[:-1], default=1) > 1 for t in layer.tensors.values()):
        return ": it has a slope for each place of the map"
    return ""


def _is_one_matrix(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an attention's projections are as torch has them: all of one width, which is that of all inputs."""
    kernels = [tensors.get(f"{part}.kernel") for part in ("query", "key", "value")]
    output = tensors.get("output.kernel")
    if output is None or any(kernel is None or kernel.ndim != 3 for kernel in kernels):
        return False
    sides = {side for k in kernels if k is not None for side in (k.shape[0], k.shape[1] * k.shape[2])}
    return len(sides) == 1 and output.ndim == 3 and output.shape[-1] in sides


# What the description says of a layer, in torch's words.


def _attributes(layer: Described, kind: str) -> dict[str, dict[str, Any]]:
    """Return the attributes of a layer, and of those inside it, by the names of these."""
    config = layer.config
    own: dict[str, Any] = {
        key: name for key in ("activation", "recurrent_activation") if (name := _activation(config.get(key)))
    }
    own |= {
        key: config[key]
        for key in ("num_heads", "key_dim", "merge_mode", "go_backwards", "data_format")
        if key in config
    }
    own |= {key: value for key, value in layer.wrapper.items() if key == "merge_mode" and value}
    if isinstance(config.get("epsilon"), int | float):
        own["eps"] = float(config["epsilon"])
    if kind == "_NormBase" and isinstance(config.get("momentum"), int | float):
        own["momentum"] = 1 - float(config["momentum"])  # the share of the new, as torch counts
    if kind == "GroupNorm":
        own["groups"] = config.get("groups")
    spatial = _spatial(config) if kind in ("_ConvNd", "_ConvTransposeNd", "depthwise", "separable") else {}
    channels = next((t.shape[-2] for n, t in layer.tensors.items() if n in ("kernel", "depthwise_kernel")), 1)
    if kind == "separable":
        return {"depthwise": spatial | {"groups": channels}, "pointwise": own}
    return {"": own | spatial | ({"groups": channels} if kind == "depthwise" else {})}


def _spatial(config: Mapping[str, Any]) -> dict[str, Any]:
    padding = config.get("padding")
    found = {
        "stride": config.get("strides"),
        "dilation": config.get("dilation_rate"),
        "groups": config.get("groups"),
    }
    found |= {"padding": 0 if padding == "valid" else padding, "data_format": config.get("data_format")}
    found |= {"output_padding": config.get("output_padding")}
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    return {key: value for key, value in plain.items() if isinstance(value, str | int | tuple)}


def _activation(value: Any) -> str:
    """Return the name of an activation, empty for none: Keras writes a name, or a description."""
    name = value.get("class_name") or value.get("config") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) and name != "linear" else ""
