"""The model that a transfer writes to: its layers under their bare names, and its tied weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.parameter import is_lazy

from transferkit.checkpoints._state_dicts import bare_names
from transferkit.errors import ArgumentError
from transferkit.layers import Layer, layers_of
from transferkit.memory import shared_groups
from transferkit.transfer._entry import MOVED, Entry


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


# Tied weights: tensors of a model that are one piece of memory under several names.


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
    return shared_groups(
        (layer.key(short), tensor) for layer in layers for short, tensor in layer.tensors.items()
    )


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
