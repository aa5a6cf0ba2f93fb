"""Targets of which every rank holds a part: what of a value is this rank's, and one answer on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn

from transferkit.distributed import on_all_ranks
from transferkit.errors import TransferError, TransferKitError
from transferkit.layers import Layer

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Value = TypeVar("Value")


def is_distributed(tensor: Tensor) -> bool:
    """Tell whether a tensor is one of which every rank holds a part or a copy, as ``fully_shard`` makes them."""
    return type(tensor).__name__ == "DTensor"


def why_no_part(tensor: Tensor) -> str:
    """Say why this rank's part of a distributed tensor cannot be written, or return an empty string."""
    placements = [type(placement).__name__ for placement in cast("DTensor", tensor).placements]
    others = [name for name in placements if name not in ("Shard", "Replicate", "_StridedShard")]
    return (
        f"the target's is a DTensor placed by {others[0]}: write to it before it is distributed"
        if others
        else ""
    )


def whole(tensor: Tensor) -> Tensor:
    """Return the shape of all of a distributed tensor, without values; any other tensor as it is."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") if is_distributed(tensor) else tensor


def with_wholes(layer: Layer) -> Layer:
    """Return a layer without distributed tensors, which no handler could compute with."""
    if not any(map(is_distributed, layer.tensors.values())):
        return layer
    return replace(layer, tensors={short: whole(tensor) for short, tensor in layer.tensors.items()})


def own_part(destination: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return this rank's part of a tensor, and the view of a value that belongs there; nothing else is read."""
    if not is_distributed(destination):
        return destination, value
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shared = cast("DTensor", destination)
    shape, start = compute_local_shape_and_global_offset(shared.shape, shared.device_mesh, shared.placements)
    for axis, (length, first) in enumerate(zip(shape, start, strict=True)):
        value = value.narrow(axis, min(first, value.shape[axis]), length)
    return local(destination), value


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return cast("DTensor", tensor)._local_tensor if is_distributed(tensor) else tensor


def empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor without values on a device, distributed as the given one is."""
    if not is_distributed(tensor):
        return torch.empty_like(tensor, device=device)
    from torch.distributed.tensor import DTensor

    shared = cast("DTensor", tensor)
    return DTensor.from_local(
        torch.empty_like(shared._local_tensor, device=device),
        shared.device_mesh,
        shared.placements,
        run_check=False,
        shape=shared.shape,
        stride=shared.stride(),
    )


def together(model: nn.Module, attempt: Callable[[], Value]) -> Value:
    """Do what exchanges nothing; where the ranks hold parts of one model and one of them fails, fail on all.

    Raises:
        TransferKitError: This rank's, or the first rank's that failed.
    """
    if not isinstance(model, nn.Module) or not any(
        map(is_distributed, (*model.parameters(), *model.buffers()))
    ):
        return attempt()

    def told() -> Value:
        try:
            return attempt()
        except TransferKitError:
            raise
        except Exception as error:
            raise TransferError(f"{type(error).__name__}: {error}; no rank's model was changed") from error

    return on_all_ranks(told)
