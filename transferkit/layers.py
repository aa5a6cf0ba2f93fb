"""The unit of transfer: a layer, in a file and in a live model.

A layer is a module that itself owns parameters or persistent buffers. It is numbered in definition order and named by
its dotted path; the same rule gives the same layers for a live model and for the state dict saved from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from transferkit.errors import harmless

__all__ = ["Layer", "layers_of"]

_EMPTY: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

_KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv", (nn.modules.conv._ConvNd,)),
    ("linear", (nn.Linear, nn.Bilinear)),
    ("norm", (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
    ("attention", (nn.MultiheadAttention,)),
    ("other", (nn.PReLU,)),  # its one weight looks like a norm's
)

# What a norm calls its scale and shift, here and in other frameworks: one value a channel, both of one shape.
_NORM_PAIRS = (
    ("weight", "bias"),
    ("gamma", "beta"),
    ("scale", "bias"),
    ("scale", "shift"),
    ("g", "b"),
    ("a_2", "b_2"),
)

# Where a reparametrized weight keeps its full shape: spectral norm and pruning, weight norm, and parametrizations.
_WEIGHTS = (
    "weight",
    "weight_orig",
    "weight_v",
    "parametrizations.weight.original",
    "parametrizations.weight.original1",
)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer with its tensors.

    Attributes:
        index: 0-based place in definition order, never parsed out of a name.
        name: Dotted path of the module; the empty string for tensors of the root module.
        kind: ``"conv"``, ``"linear"``, ``"norm"``, ``"embedding"``, ``"recurrent"``, ``"attention"`` or
            ``"conv1d"`` (GPT-2's linear layer, whose weight is (in, out)) or ``"other"``, which is also what is not
            known. From the module's type in a live model; inferred from the
            names and dimensions of the tensors in a file. Norms of unknown types are told by their tensors in both.
        tensors: Parameters and buffers by short name (``weight``, ``running_mean``), in definition order.
        states: Optimizer state by tensor and then by state name: ``states["weight"]["momentum_buffer"]``; tensors,
            numbers, or what else the optimizer keeps.
        module: The module itself where the layer is part of a live model, else ``None``.
        raw_index: The layer's number in the file's own count, where it has one (neon counts poolings too).
        keys: State-dict keys of tensors whose short name here differs from the one in their file.
        path: The name in the file or model, where a wrapper (DDP, ``torch.compile``) put something into it.
        ordered: Whether ``index`` tells the order of definition; some formats keep none.
        attributes: What the file says of the layer beside its tensors, as plain values: epsilon, stride, padding,
            groups, activation, data format. Empty where the file says nothing.
        layout: ``"torch"``, or the format whose axes and names the tensors still have, because it does not tell the
            layer's kind; the plan of a transfer converts them by the kind of the target module.
    """

    index: int
    name: str
    kind: str
    tensors: Mapping[str, Tensor]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _EMPTY)
    module: nn.Module | None = None
    raw_index: int | None = None
    keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    path: str = ""
    ordered: bool = True
    attributes: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    layout: str = "torch"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by short name."""
        return {key: tuple(tensor.shape) for key, tensor in self.tensors.items()}

    @property
    def elements(self) -> int:
        """Number of elements in all tensors together."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def key(self, short: str) -> str:
        """Return the state-dict key of one of the layer's tensors: ``"features.0" -> "features.0.weight"``."""
        return self.keys.get(short) or (f"{self.name}.{short}" if self.name else short)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{harmless(key)} {list(shape)}" for key, shape in self.shapes.items())
        return f"Layer({self.index}, {self.name!r}, {self.kind}: {shapes})"


def kind_of_module(module: nn.Module) -> str:
    """Return the kind of a live module: by its type and the types that this extends, else a norm by its tensors."""
    for kind, types in _KINDS:
        if isinstance(module, types):
            return kind
    if hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in type(module).__mro__):
        return "conv1d"  # of transformers, where it is the linear layer of GPT-2
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    known = {name: tensor for name, tensor in own if not is_lazy(tensor)}
    return "norm" if len(known) == len(own) and _is_norm(known) else "other"


def kind_of_class(name: str) -> str:
    """Return the kind of one of torch's own modules by its full name, or an empty string.

    Example:
        >>> kind_of_class("torch.nn.modules.conv.Conv2d"), kind_of_class("mine.Conv2d")
        ('conv', '')
    """
    module, _, short = name.rpartition(".")
    found = vars(nn).get(short) if module.startswith("torch.nn.") else None
    return next((kind for kind, types in _KINDS if isinstance(found, type) and issubclass(found, types)), "")


def kind_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Infer a layer's kind from its tensors; an embedding looks like a linear layer without bias, so it is one."""
    if _is_norm(tensors):
        return "norm"
    if "in_proj_weight" in tensors or "q_proj_weight" in tensors:
        return "attention"
    if any(name.startswith(("weight_ih", "weight_hh")) for name in tensors):
        return "recurrent"
    weight = next((tensors[name] for name in _WEIGHTS if name in tensors), None)
    if weight is None:
        return "other"
    return {2: "linear", 3: "conv", 4: "conv", 5: "conv"}.get(weight.ndim, "other")


def _is_norm(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors are a norm's: running statistics, scale and shift of one shape, or a weight a channel."""
    if "running_mean" in tensors or "moving_mean" in tensors:
        return True
    if any(
        {scale, shift} == set(tensors) and _alike(tensors[scale], tensors[shift])
        for scale, shift in _NORM_PAIRS
    ):
        return True
    return set(tensors) == {"weight"} and tensors["weight"].ndim == 1 and tensors["weight"].numel() > 1


def _alike(scale: Tensor, shift: Tensor) -> bool:
    return scale.ndim > 0 and scale.shape == shift.shape


def split_key(key: str) -> tuple[str, str]:
    """Split a state-dict key into its layer's name and the tensor's short name.

    A parametrized weight belongs to the layer whose weight it is.

    Example:
        >>> split_key("features.0.weight"), split_key(".weight")
        (('features.0', 'weight'), ('', '.weight'))
        >>> split_key("fc.parametrizations.weight.original0")
        ('fc', 'parametrizations.weight.original0')
    """
    owner, marker, part = f".{key}".partition(".parametrizations.")
    name, short = (owner[1:], f"parametrizations.{part}") if marker else key.rpartition(".")[::2]
    return (name, short) if name else ("", key)


def natural_order(name: str) -> str:
    """Return a sort key by which ``"features.2"`` comes before ``"features.10"``, and a layer before what is in it.

    Example:
        >>> sorted(["b.10.bias", "b.2.bias", "a.weight"], key=natural_order)
        ['a.weight', 'b.2.bias', 'b.10.bias']
    """
    return re.sub(r"0*(\d+)", lambda number: f"\0{len(number[1]):04}{number[1]}", name)


def _grouped(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by layer, in order of first appearance."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors:
        name, short = split_key(key)
        grouped.setdefault(name, {})[short] = tensor
    return grouped


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a live model in definition order.

    The tensors are the model's own parameters and persistent buffers, not copies. A module used in two places is two
    layers with the same tensors, as in the model's state dict. Non-persistent buffers belong to no layer, since no
    file holds them.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> [(layer.index, layer.name, layer.kind) for layer in layers_of(net)]
        [(0, '0', 'conv'), (1, '3', 'linear')]
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: list[tuple[str, Tensor]] = []
    for name, module in modules.items():
        tensors += module.named_parameters(name, recurse=False, remove_duplicate=False)
        tensors += _persistent_buffers(name, module)
    return tuple(
        Layer(index, name, kind_of_module(modules[name]), MappingProxyType(own), module=modules[name])
        for index, (name, own) in enumerate(_grouped(tensors).items())
    )


def _persistent_buffers(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    scratch = module._non_persistent_buffers_set
    buffers = module.named_buffers(name, recurse=False, remove_duplicate=False)
    return ((key, tensor) for key, tensor in buffers if key.rpartition(".")[2] not in scratch)


def layers_from_tensors(
    tensors: Mapping[str, Tensor],
    states: Mapping[str, Mapping[str, Any]] = _EMPTY,
    raw_index: Mapping[str, int] = MappingProxyType({}),
    *,
    paths: Mapping[str, str] = MappingProxyType({}),
    ordered: bool = True,
    kinds: Mapping[str, str] = MappingProxyType({}),
    attributes: Mapping[str, Mapping[str, Any]] = _EMPTY,
    layout: str = "torch",
) -> tuple[Layer, ...]:
    """Group a flat state dict into layers, in order of first appearance.

    Args:
        tensors: Tensors by full key, ``"features.0.weight"``.
        states: Optimizer state by the same full key, then by state name.
        raw_index: Each layer's number in the file's own count, by layer name.
        paths: Each layer's name in the file, by layer name, where they differ.
        ordered: Whether the tensors stand in the order of definition.
        kinds: Each layer's kind, by layer name, where the file tells it.
        attributes: What the file says of each layer beside its tensors, by layer name.
        layout: The layers' :attr:`Layer.layout`.

    Example:
        >>> import torch
        >>> layers_from_tensors({"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2)})
        (Layer(0, 'fc', linear: weight [2, 3], bias [2]),)
    """
    own_states: dict[str, dict[str, Mapping[str, Any]]] = {}
    for key, state in states.items():
        name, short = split_key(key)
        own_states.setdefault(name, {})[short] = state
    return tuple(
        Layer(
            index,
            name,
            kinds.get(name) or kind_of_tensors(own),
            own,
            own_states.get(name, {}),
            raw_index=raw_index.get(name),
            path=paths.get(name, ""),
            ordered=ordered,
            attributes=attributes.get(name, _EMPTY),
            layout=layout,
        )
        for index, (name, own) in enumerate(_grouped(tensors.items()).items())
    )


def are_sorted(keys: Sequence[str]) -> bool:
    """Tell whether state-dict keys were put in order of their names, so that their order says nothing of the model.

    Keys that stand sorted may have been defined so. What gives sorting away is a bias before its weight, which no
    module of torch has, or a tenth block before the second.

    Example:
        >>> are_sorted(["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"])
        True
        >>> are_sorted(["fc1.weight", "fc1.bias", "fc21.weight", "fc21.bias", "fc3.weight", "fc3.bias"])
        False
        >>> are_sorted(["block.1.weight", "block.10.weight", "block.2.weight"])
        True
    """
    natural = sorted(keys, key=natural_order)
    biases_first = any(
        one.endswith(".bias") and two == f"{one.removesuffix('bias')}weight" for one, two in pairwise(natural)
    )
    if list(keys) == natural:
        return biases_first
    return list(keys) == sorted(keys)
