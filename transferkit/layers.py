"""The unit of transfer: a layer, in a file and in a live model.

A layer is a module that itself owns parameters or buffers. It is numbered in definition order and named by its
dotted path; the same rule gives the same layers for a live model and for the state dict saved from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

__all__ = ["Layer", "layers_of"]

_EMPTY: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

_KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("conv", (nn.modules.conv._ConvNd,)),
    ("linear", (nn.Linear, nn.Bilinear)),
    ("norm", (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("recurrent", (nn.RNNBase, nn.RNNCellBase)),
    ("attention", (nn.MultiheadAttention,)),
)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer with its tensors.

    Attributes:
        index: 0-based place in definition order, never parsed out of a name.
        name: Dotted path of the module; the empty string for tensors of the root module.
        kind: ``"conv"``, ``"linear"``, ``"norm"``, ``"embedding"``, ``"recurrent"``, ``"attention"`` or
            ``"other"``. From the module's type in a live model; inferred from the names and dimensions of the
            tensors in a file.
        tensors: Parameters and buffers by short name (``weight``, ``running_mean``), in definition order.
        states: Optimizer state by tensor and then by state name: ``states["weight"]["momentum_buffer"]``; tensors,
            numbers, or what else the optimizer keeps.
        module: The module itself where the layer is part of a live model, else ``None``.
        raw_index: The layer's number in the file's own count, where it has one (neon counts poolings too).
        keys: State-dict keys of tensors whose short name here differs from the one in their file.
    """

    index: int
    name: str
    kind: str
    tensors: Mapping[str, Tensor]
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _EMPTY)
    module: nn.Module | None = None
    raw_index: int | None = None
    keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

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
        shapes = ", ".join(f"{key} {list(shape)}" for key, shape in self.shapes.items())
        return f"Layer({self.index}, {self.name!r}, {self.kind}: {shapes})"


def kind_of_module(module: nn.Module) -> str:
    """Return the kind of a live module by its type."""
    for kind, types in _KINDS:
        if isinstance(module, types):
            return kind
    return "other"


def kind_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Infer a layer's kind from its tensors; an embedding looks like a linear layer without bias, so it is one."""
    if "running_mean" in tensors:
        return "norm"
    if "in_proj_weight" in tensors:
        return "attention"
    if any(name.startswith(("weight_ih", "weight_hh")) for name in tensors):
        return "recurrent"
    weight = tensors.get("weight")
    if weight is None:
        return "other"
    return {1: "norm", 2: "linear", 3: "conv", 4: "conv", 5: "conv"}.get(weight.ndim, "other")


def split_key(key: str) -> tuple[str, str]:
    """Split a state-dict key into its layer's name and the tensor's short name.

    A parametrized weight belongs to the layer whose weight it is.

    Example:
        >>> split_key("features.0.weight")
        ('features.0', 'weight')
        >>> split_key("fc.parametrizations.weight.original0")
        ('fc', 'parametrizations.weight.original0')
    """
    owner, marker, part = f".{key}".partition(".parametrizations.")
    if marker:
        return owner[1:], f"parametrizations.{part}"
    name, _, short = key.rpartition(".")
    return name, short


def natural_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which ``"features.2"`` comes before ``"features.10"``, and a layer before what is in it.

    Example:
        >>> sorted(["b.10.bias", "b.2.bias", "a.weight"], key=natural_order)
        ['a.weight', 'b.2.bias', 'b.10.bias']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _grouped(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by layer, in order of first appearance."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors:
        name, short = split_key(key)
        grouped.setdefault(name, {})[short] = tensor
    return grouped


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a live model in definition order.

    The tensors are the model's own parameters and buffers, not copies. A module used in two places is two layers
    with the same tensors, as in the model's state dict.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> [(layer.index, layer.name, layer.kind) for layer in layers_of(net)]
        [(0, '0', 'conv'), (1, '3', 'linear')]
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors: list[tuple[str, Tensor]] = []
    for name, module in modules.items():
        tensors += module.named_parameters(name, recurse=False, remove_duplicate=False)
        tensors += module.named_buffers(name, recurse=False, remove_duplicate=False)
    return tuple(
        Layer(index, name, kind_of_module(modules[name]), MappingProxyType(own), module=modules[name])
        for index, (name, own) in enumerate(_grouped(tensors).items())
    )


def layers_from_tensors(
    tensors: Mapping[str, Tensor],
    states: Mapping[str, Mapping[str, Any]] = _EMPTY,
    raw_index: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Layer, ...]:
    """Group a flat state dict into layers, in order of first appearance.

    Args:
        tensors: Tensors by full key, ``"features.0.weight"``.
        states: Optimizer state by the same full key, then by state name.
        raw_index: Each layer's number in the file's own count, by layer name.

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
        Layer(index, name, kind_of_tensors(own), own, own_states.get(name, {}), raw_index=raw_index.get(name))
        for index, (name, own) in enumerate(_grouped(tensors.items()).items())
    )
