"""Give the parameters of a model on the meta device memory, and take it back if the transfer fails."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.errors import ArgumentError, TransferError
from transferkit.transfer.entry import MOVED, Entry
from transferkit.transfer.target import Target
from transferkit.transfer.write import Transaction

_Place = tuple[dict[str, Tensor | None], str, Tensor]


def materialise(
    target: Target, entries: tuple[Entry, ...], device: torch.device | str | None, transaction: Transaction
) -> dict[int, Tensor]:
    """Replace every meta tensor of a model by one on ``device``; tied ones by one.

    Args:
        target: The model.
        entries: The plan's entries. Every meta tensor must be moved: one that kept its own value has none.
        device: Where the tensors go.
        transaction: Takes it back if anything fails.

    Returns:
        The new tensor by the ``id`` of the meta tensor that it replaces; empty where there is none.

    Raises:
        ArgumentError: There are meta tensors and no device.
        TransferError: A meta tensor would be left without a value.
    """
    places = list(_meta_places(target.model))
    made: dict[int, Tensor] = {}
    if not places:
        return made
    if device is None:
        raise ArgumentError("the model is on the meta device; pass device= to say where it is to live")
    moved = {entry.key for entry in entries if entry.bucket in MOVED}
    empty = [
        layer.key(short)
        for layer in target.layers
        for short, tensor in layer.tensors.items()
        if tensor.is_meta and layer.key(short) not in moved
    ]
    if empty:
        raise TransferError(
            "the model is on the meta device, and these tensors would be left without values:\n"
            + "\n".join(f"  {key}" for key in empty)
            + "\nNext step: select them and have them in the source, or build the model on a real device"
        )

    def fill() -> None:
        for owner, name, old in places:
            if id(old) not in made:
                made[id(old)] = _empty_like(old, torch.device(device))
            owner[name] = made[id(old)]

    def empty_again() -> None:
        for owner, name, old in places:
            owner[name] = old

    transaction.step(fill, undo=empty_again)
    return made


def require_real(optimizer: Optimizer) -> None:
    """Refuse an optimizer of meta parameters: it would go on holding them after they were replaced.

    Raises:
        ArgumentError: It holds one.
    """
    if any(parameter.is_meta for group in optimizer.param_groups for parameter in group["params"]):
        raise ArgumentError(
            "the optimizer holds parameters on the meta device; build the optimizer after the transfer"
        )


def _meta_places(model: nn.Module) -> Iterator[_Place]:
    """Yield every place in the model's modules that holds a meta tensor."""
    for module in model.modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                if tensor is not None and tensor.is_meta:
                    yield owner, name, tensor  # type: ignore[misc]


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty_like(tensor, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
