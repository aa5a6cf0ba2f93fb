"""Weights that are stored in parts: weight norm in files, and any parametrization of a live target."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from transferkit.layers import Layer
from transferkit.transfer.handlers.registry import register_handler

_OWN = "parametrizations."


@register_handler("parametrizations")
def parametrizations(source: Layer, target: Layer) -> Mapping[str, Tensor] | None:
    """Put together a weight that is stored in parts, or take it apart as the target stores it.

    Weight norm is understood on both sides, in torch's old spelling (``weight_g``, ``weight_v``) and its new one,
    which in a file is told by its shapes: one length for every row, column or for the whole weight.
    Any other parametrization is understood on the target's side, if it has a ``right_inverse``. The layer computes
    with the same weight afterwards where the parametrization can represent it.

    Args:
        source: A layer with whole weights, or weight norm's parts.
        target: The layer to fill.

    Returns:
        The target's tensors; ``None`` where neither side stores a weight in parts.
    """
    whole = _put_together(source)
    if not any(short.startswith(_OWN) or short.endswith("_g") for short in target.tensors):
        return None if whole == source.tensors else whole
    tensors: dict[str, Tensor] = {}
    for short, own in target.tensors.items():
        if short in whole:
            tensors[short] = whole[short]
        elif short.endswith("_g") and short[:-2] in whole and _are_norm(short[:-2], own, whole[short[:-2]]):
            weight = whole[short[:-2]]
            tensors |= {short: _length(weight, own), f"{short[:-2]}_v": weight}
    return {**tensors, **_by_right_inverse(whole, target)}


def _put_together(source: Layer) -> dict[str, Tensor]:
    """Return the tensors with each pair of weight norm's parts made one."""
    whole = dict(source.tensors)
    for short in source.tensors:
        if short.endswith("_g"):
            name, other = short[:-2], f"{short[:-2]}_v"
        elif short.startswith(_OWN) and short.endswith(".original0") and _may_be_norm(source.module, short):
            name, other = short.split(".")[1], f"{short[:-1]}1"
        else:
            continue
        if other in whole and _are_norm(name, whole[short], whole[other]):
            gain, direction = whole.pop(short), whole.pop(other)
            whole[name] = direction * (gain / _length(direction, gain))
    return whole


def _may_be_norm(module: nn.Module | None, short: str) -> bool:
    """Tell whether two parts of a weight may be weight norm's: a live module says what it does with them."""
    lists = getattr(module, "parametrizations", None)
    steps = [] if lists is None else [type(step).__name__ for step in lists[short.split(".")[1]]]
    return lists is None or steps == ["_WeightNorm"]


def _are_norm(name: str, gain: Tensor, direction: Tensor) -> bool:
    """Tell whether one tensor has the length of another as a whole, or of each of its rows or columns."""
    if gain.ndim == 0:
        return True
    if gain.ndim != direction.ndim or (gain.shape == direction.shape and name != "weight"):
        return False  # tensors of one shape under other names may be anything: a gate and a value, say
    kept = [axis for axis in range(gain.ndim) if gain.shape[axis] != 1]
    return len(kept) <= 1 and all(gain.shape[axis] == direction.shape[axis] for axis in kept)


def _length(direction: Tensor, gain: Tensor) -> Tensor:
    axes = [axis for axis in range(direction.ndim) if gain.ndim == 0 or gain.shape[axis] == 1]
    length: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=gain.ndim > 0)
    return length


def _by_right_inverse(whole: Mapping[str, Tensor], target: Layer) -> dict[str, Tensor]:
    """Return the parts, and buffers, with which the target's own parametrizations make these weights.

    Raises:
        ValueError: They cannot make such a weight.
    """
    tensors: dict[str, Tensor] = {}
    lists = cast("Mapping[str, nn.ModuleList]", getattr(target.module, "parametrizations", {}))
    for name, steps in lists.items():
        prefix = f"{_OWN}{name}."
        stored = {short: own for short, own in target.tensors.items() if short.startswith(prefix)}
        if name not in whole or not all(hasattr(step, "right_inverse") for step in steps):
            continue
        if whole[name].is_meta:  # the plan needs shapes, and a right inverse may not work without values
            tensors |= {short: torch.empty_like(own, device="meta") for short, own in stored.items()}
            continue
        # A right inverse may change its module's buffers; the target's are not to be touched yet.
        made = copy.deepcopy(steps)
        parts = value = whole[name].to(next(iter(stored.values())))
        for step in reversed(list(made)):
            parts = step.right_inverse(parts)  # type: ignore[operator]
        several = [parts] if isinstance(parts, Tensor) else list(parts)
        first, *others = made
        again = first(*several)
        for step in others:
            again = step(again)
        if not torch.allclose(again, value, rtol=1e-3, atol=1e-5):
            raise ValueError(f"the target's parametrization of {name} cannot represent this weight")
        originals = [short for short in stored if short.startswith(f"{prefix}original")]
        tensors |= dict(zip(originals, several, strict=True))
        buffers = {f"{prefix}{key}": buffer for key, buffer in made.named_buffers()}
        tensors |= {short: buffer for short, buffer in buffers.items() if short in stored}
    return tensors
