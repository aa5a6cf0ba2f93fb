"""Tied weights: tensors of a model that are one piece of memory under several names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from transferkit.layers import Layer
from transferkit.transfer.entry import MOVED, Entry


def same_memory(tensor: Tensor) -> Hashable:
    """Return a key that two tensors share if they are the same elements in the same memory."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def tie_groups(layers: Iterable[Layer]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more keys that are the same memory, each in definition order.

    Example:
        >>> from torch import nn
        >>> from transferkit.layers import layers_of
        >>> net = nn.ModuleDict({"embed": nn.Embedding(10, 4), "out": nn.Linear(4, 10, bias=False)})
        >>> net["out"].weight = net["embed"].weight
        >>> tie_groups(layers_of(net))
        (('embed.weight', 'out.weight'),)
    """
    groups: dict[Hashable, list[str]] = {}
    for layer in layers:
        for short, tensor in layer.tensors.items():
            groups.setdefault(same_memory(tensor), []).append(layer.key(short))
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


def settle_ties(entries: Sequence[Entry], groups: Iterable[Sequence[str]]) -> list[Entry]:
    """Let the first moved tensor of each tied group be written, and mark the others as tied to it.

    A tied tensor that is missing in the source, or not selected, has its values from the one that is written.
    """
    by_key: Mapping[str, Entry] = {entry.target.key: entry for entry in entries if entry.target is not None}
    written_for: dict[str, str] = {}
    for keys in groups:
        moved = [key for key in keys if by_key[key].bucket in MOVED]
        written_for |= {key: moved[0] for key in keys if moved and key != moved[0]}
    return [
        replace(entry, bucket="tied", handler="", reason="", allowed="", tied_to=written_for[entry.key])
        if entry.target is not None and entry.key in written_for and entry.bucket != "mismatched"
        else entry
        for entry in entries
    ]
