"""What a transfer did, and what training needs to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from transferkit.transfer.account import Account
from transferkit.transfer.entry import MOVED
from transferkit.transfer.parameter_groups import parameter_groups


@dataclass(frozen=True)
class TransferReport(Account):
    """What a transfer did: every tensor of source and target in exactly one bucket."""

    @property
    def moved(self) -> tuple[str, ...]:
        """Keys of the target tensors that hold the source's values now: copied, adapted, cast or tied."""
        return tuple(entry.key for entry in self.entries if entry.bucket in MOVED)

    def parameter_groups(
        self,
        model: nn.Module,
        *,
        transferred: Mapping[str, Any],
        new: Mapping[str, Any],
        decay_biases_and_norms: bool = True,
    ) -> list[dict[str, Any]]:
        """Split the model's trainable parameters into groups for an optimizer.

        Args:
            model: The model that was transferred to; also after its head was replaced or layers were frozen.
            transferred: Options of the groups of transferred parameters, ``{"lr": 1e-5}``.
            new: Options of the groups of all others, ``{"lr": 1e-3}``.
            decay_biases_and_norms: ``False`` gives biases and norm layers groups with ``weight_decay`` 0.

        Raises:
            ArgumentError: Nothing in the model is trainable.
        """
        return parameter_groups(
            model,
            set(self.moved),
            transferred=transferred,
            new=new,
            decay_biases_and_norms=decay_biases_and_norms,
        )
