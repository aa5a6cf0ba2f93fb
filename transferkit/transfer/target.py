"""The model that a transfer writes to, as layers under their bare names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from torch.nn.parameter import is_lazy

from transferkit.checkpoints.prefixes import bare_names
from transferkit.errors import ArgumentError
from transferkit.layers import Layer, layers_of


@dataclass(frozen=True)
class Target:
    """A live model's layers.

    Attributes:
        model: The model itself.
        layers: Its layers, named without what wrappers (DDP, ``torch.compile``) put into the names.
        derived: Keys of the non-persistent buffers, which the model makes itself and no file holds.
        notes: What was left out of the names.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    derived: frozenset[str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Target:
        """Look at a model.

        Raises:
            ArgumentError: It is not a module, or has lazy parameters, whose shapes are not known yet.
        """
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        layers = layers_of(model)
        lazy = [layer.name for layer in layers if any(is_lazy(tensor) for tensor in layer.tensors.values())]
        if lazy:
            raise ArgumentError(
                f"the model's lazy layers have no shape yet: {', '.join(lazy)}; run one batch through it first"
            )
        bare = bare_names([layer.name for layer in layers])
        set_aside = dict.fromkeys(
            f"{part}."
            for long, short in bare.items()
            for part in long.split(".")
            if long != short and part not in short.split(".")
        )
        layers = tuple(replace(layer, name=bare[layer.name]) for layer in layers)
        notes = tuple(f"set aside in the target's names: {part}" for part in set_aside)
        return cls(model, layers, frozenset(_derived(layers)), notes)


def _derived(layers: tuple[Layer, ...]) -> set[str]:
    return {
        layer.key(short)
        for layer in layers
        if layer.module is not None
        for short in layer.module._non_persistent_buffers_set
        if short in layer.tensors
    }
