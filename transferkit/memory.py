"""Tensors that are one piece of memory under several names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor


def place_of(tensor: Tensor) -> Hashable:
    """Return a key that two tensors share if they are the same elements in the same memory.

    No element is read, so a tensor mapped from a file stays unread. A tensor without memory of its own (on the meta
    device, empty, sparse) is identified by the object itself.
    """
    if tensor.is_meta or tensor.numel() == 0 or tensor.layout != torch.strided:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same elements in the same memory."""
    return place_of(one) == place_of(other)


def shared_groups(tensors: Iterable[tuple[str, Tensor]]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more keys that name the same tensor, in order of first appearance.

    Example:
        >>> weight = torch.zeros(3, 2)
        >>> shared_groups([("embed.weight", weight), ("norm.weight", torch.ones(2)), ("head.weight", weight)])
        (('embed.weight', 'head.weight'),)
    """
    groups: dict[Hashable, list[str]] = {}
    for key, tensor in tensors:
        groups.setdefault(place_of(tensor), []).append(key)
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


def move(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Return the tensors on a device; those that shared memory share it there."""
    moved: dict[Hashable, Tensor] = {}
    for tensor in tensors.values():
        if place_of(tensor) not in moved:
            moved[place_of(tensor)] = tensor.to(device)
    return {key: moved[place_of(tensor)] for key, tensor in tensors.items()}
