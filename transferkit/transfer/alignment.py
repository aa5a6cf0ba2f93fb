"""Align two sequences of layers by what their tensors look like, and tell where that leaves a choice.

The longest common subsequence of the two, found by dynamic programming: pairs keep their order, and as many layers as
possible have a counterpart with tensors of the same shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from transferkit.layers import Layer

# What other frameworks and hand-written layers call the same tensors.
_ALIASES = {
    "kernel": "weight",
    "w": "weight",
    "gamma": "weight",
    "scale": "weight",
    "g": "weight",
    "a_2": "weight",
    "b": "bias",
    "beta": "bias",
    "b_2": "bias",
    "shift": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_var": "running_var",
}


@dataclass(frozen=True)
class Alignment:
    """Which source layers each target layer may be paired with.

    Attributes:
        options: For each target layer the places of the source layers that some best alignment pairs it with;
            ``None`` among them stands for an alignment that leaves it without one.
    """

    options: tuple[tuple[int | None, ...], ...]


def align(targets: Sequence[Layer], sources: Sequence[Layer]) -> Alignment:
    """Align target layers with source layers.

    Args:
        targets: Layers of the target, in definition order.
        sources: Layers of the source, in definition order.

    Example:
        >>> from torch import nn
        >>> from transferkit.layers import layers_of
        >>> two = layers_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(2, 2)))
        >>> three = layers_of(nn.Sequential(nn.Linear(1, 1), nn.Linear(2, 2), nn.Linear(2, 2)))
        >>> align(two, three).options
        ((0,), (1, 2))
    """
    alike = _alike(targets, sources)
    rows, columns = len(targets), len(sources)
    # ahead[i][j]: most pairs among the first i targets and the first j sources; behind[i][j]: among the rest.
    ahead = [[0] * (columns + 1) for _ in range(rows + 1)]
    behind = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows):
        for j in range(columns):
            ahead[i + 1][j + 1] = max(ahead[i][j] + alike[i][j], ahead[i][j + 1], ahead[i + 1][j])
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            behind[i][j] = max(behind[i + 1][j + 1] + alike[i][j], behind[i + 1][j], behind[i][j + 1])
    best = ahead[rows][columns]
    options: list[tuple[int | None, ...]] = []
    for i in range(rows):
        pairs: list[int | None] = [
            j for j in range(columns) if alike[i][j] and ahead[i][j] + 1 + behind[i + 1][j + 1] == best
        ]
        left_out = any(ahead[i][j] + behind[i + 1][j] == best for j in range(columns + 1))
        options.append((*pairs, *([None] if left_out else [])))
    return Alignment(tuple(options))


def tensor_names(target: Layer, source: Layer) -> dict[str, str] | None:
    """Return for each of a target layer's tensors the source tensor that it is, or ``None`` where there is none.

    Tensors are the same by name, or by a name that other frameworks use for it, or by a shape that only one on each
    side has. Counters without dimensions do not count.

    Example:
        >>> import torch
        >>> norm = Layer(0, "norm", "norm", {"weight": torch.ones(8), "bias": torch.ones(8)})
        >>> tensor_names(norm, Layer(0, "ln", "other", {"gamma": torch.ones(8), "beta": torch.ones(8)}))
        {'weight': 'gamma', 'bias': 'beta'}
    """
    wanted, offered = _tensors(target), _tensors(source)
    names: dict[str, str] = {}
    by_alias = {_ALIASES.get(short, short): short for short in offered}
    for short, tensor in wanted.items():
        other = by_alias.get(_ALIASES.get(short, short))
        if other is not None and offered[other].shape == tensor.shape:
            names[short] = other
    left = {short: tensor.shape for short, tensor in wanted.items() if short not in names}
    free = {short: tensor.shape for short, tensor in offered.items() if short not in names.values()}
    if Counter(left.values()) != Counter(free.values()) or len(set(left.values())) != len(left):
        return None
    by_shape = {shape: short for short, shape in free.items()}
    return names | {short: by_shape[shape] for short, shape in left.items()}


def signature(layer: Layer) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return what layers of the same look have in common: names and shapes of the tensors that count."""
    tensors = _tensors(layer)
    return tuple(sorted((_ALIASES.get(short, short), tuple(tensor.shape)) for short, tensor in tensors.items()))


def _alike(targets: Sequence[Layer], sources: Sequence[Layer]) -> list[list[bool]]:
    """Return whether each target layer can take each source layer, comparing every two looks once."""
    known: dict[object, bool] = {}
    source_looks = [signature(source) for source in sources]
    table = []
    for target in targets:
        look = signature(target)
        row = []
        for source, other in zip(sources, source_looks, strict=True):
            if (look, other) not in known:
                known[look, other] = bool(look) and tensor_names(target, source) is not None
            row.append(known[look, other])
        table.append(row)
    return table


def _tensors(layer: Layer) -> Mapping[str, Tensor]:
    return {short: tensor for short, tensor in layer.tensors.items() if tensor.ndim > 0}
