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

    Weight norm is understood on both sides, in torch's old spelling (``weight_g``, ``weight_v``) and its new one.
    Any other parametrization is understood on the target's side, if it has a ``right_inverse``. The layer computes
    with the same weight afterwards where the parametrization can represent it.

    Args:
        source: A layer with whole weights, or weight norm's parts.
        target: The layer to fill.

    Returns:
        The target's tensors; ``None`` where neither side stores a weight in parts.
    """
    whole = _put_together(source.tensors)
    if not any(short.startswith(_OWN) or short.endswith("_g") for short in target.tensors):
        return None if whole == source.tensors else whole
    tensors: dict[str, Tensor] = {}
    for short, own in target.tensors.items():
        if short in whole:
            tensors[short] = whole[short]
        elif short.endswith("_g") and short[:-2] in whole:
            gain, direction = _take_apart(whole[short[:-2]], own)
            tensors |= {short: gain, f"{short[:-2]}_v": direction}
    return {**tensors, **_by_right_inverse(whole, target)}


def _put_together(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with each pair of weight norm's parts made one."""
    whole = dict(tensors)
    for short in tensors:
        if short.endswith("_g") and f"{short[:-2]}_v" in tensors:
            name, parts = short[:-2], (short, f"{short[:-2]}_v")
        elif short.startswith(_OWN) and short.endswith(".original0"):
            name, parts = short.split(".")[1], (short, f"{short[:-1]}1")
        else:
            continue
        gain, direction = (whole.pop(part) for part in parts)
        axes = [axis for axis in range(direction.ndim) if gain.ndim == 0 or gain.shape[axis] == 1]
        whole[name] = direction * (gain / torch.linalg.vector_norm(direction, dim=axes, keepdim=gain.ndim > 0))
    return whole


def _take_apart(weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(weight.ndim) if gain.ndim == 0 or gain.shape[axis] == 1]
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=gain.ndim > 0), weight


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
