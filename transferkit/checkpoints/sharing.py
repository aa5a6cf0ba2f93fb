"""Which tensors of a state dict are one and the same memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_Place = tuple[torch.device, int, tuple[int, ...], tuple[int, ...]]


def place_of(tensor: Tensor) -> _Place | None:
    """Return where a tensor lies and how it is laid out, or ``None`` if it has no memory of its own.

    Reads no element: a tensor mapped from a file stays unread.
    """
    if tensor.is_meta or tensor.numel() == 0 or tensor.is_sparse:
        return None
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())


def shared_groups(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of keys that name the same tensor, in order of first appearance.

    Example:
        >>> weight = torch.zeros(3, 2)
        >>> shared_groups({"embed.weight": weight, "norm.weight": torch.ones(2), "head.weight": weight})
        (('embed.weight', 'head.weight'),)
    """
    groups: dict[_Place, list[str]] = {}
    for key, tensor in tensors.items():
        place = place_of(tensor)
        if place is not None:
            groups.setdefault(place, []).append(key)
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


def move(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Return the tensors on a device; those that shared memory share it there."""
    moved: dict[_Place, Tensor] = {}
    result = {}
    for key, tensor in tensors.items():
        place = place_of(tensor)
        if place is None:
            result[key] = tensor.to(device)
        else:
            if place not in moved:
                moved[place] = tensor.to(device)
            result[key] = moved[place]
    return result
