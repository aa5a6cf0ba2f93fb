"""``WeightTransfer``: select, map, convert, check everything, then write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import ArgumentError
from transferkit.layers import Layer
from transferkit.transfer.account import Origin, versions
from transferkit.transfer.allow import AllowMissing, allowance
from transferkit.transfer.choose import Chooser, Handlers
from transferkit.transfer.conversion import Conversion
from transferkit.transfer.decide import decide
from transferkit.transfer.mapping import MappingSpec, Pairing, map_by_name, map_by_order, renaming
from transferkit.transfer.plan import TransferPlan
from transferkit.transfer.report import TransferReport
from transferkit.transfer.select import Predicate, every, select_layers
from transferkit.transfer.target import Target
from transferkit.transfer.ties import settle_ties, tie_groups
from transferkit.transfer.write import Write, write_all

Source = Checkpoint | nn.Module | Mapping[str, Tensor] | Sequence[Layer] | str | os.PathLike[str]


@dataclass(frozen=True)
class _Prepared:
    """A plan with the live layers that it is about."""

    plan: TransferPlan
    target: Target
    conversions: Sequence[Conversion]


class WeightTransfer:
    """Moves layers of a source onto a model: chosen by a rule, found by a mapping, all of them or none.

    Args:
        source: A checkpoint, a path to one, a state dict, a live module, or layers of any of these.
        select: Which of the *target's* layers are written; a rule or a callable ``(index, layer) -> bool``.
        mapping: Which source layer serves a selected layer: ``"name"`` that of the same name; ``"order"`` the
            i-th for the i-th; a dict from target to source names, globs or regular expressions (what it does
            not mention maps to its own name); or a function from a target's name to a source's.
        handlers: Handlers or names of handlers that convert layers which do not fit as they are; or a dict that
            aims handlers at layers, ``{"features.0": "input_channels"}``.
        on_mismatch: ``"error"``, or ``"adapt"`` to try every registered handler on what does not fit.
        allow_missing: Globs (``"classifier.*"``) or a rule for what the source need not have.
        device: Where parameters of a model on the meta device are materialised.

    Example:
        >>> from transferkit.transfer import before
        >>> donor = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 9))
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> report = WeightTransfer(donor, select=before("1")).apply(model)
        >>> report.copied
        ('0.weight', '0.bias')
        >>> bool((model[0].weight == donor[0].weight).all())
        True
    """

    def __init__(
        self,
        source: Source,
        *,
        select: Predicate | None = None,
        mapping: MappingSpec = "name",
        handlers: Handlers = (),
        on_mismatch: Literal["error", "adapt"] = "error",
        allow_missing: AllowMissing = None,
        load_states: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.source = _as_checkpoint(source)
        self.select = every() if select is None else select
        self.mapping = mapping
        self.handlers = handlers
        self.on_mismatch = on_mismatch
        self.allow_missing = allow_missing
        self.load_states = load_states
        self.device = device

    def plan(self, model: nn.Module, optimizer: Optimizer | None = None) -> TransferPlan:
        """Return what :meth:`apply` would do, from names, shapes and dtypes alone. Nothing is written.

        Raises:
            SelectionError: A rule matches nothing.
            ArgumentError: A model with lazy parameters, an unknown handler or mapping.
            HandlerError: A handler failed.
        """
        return self._prepare(model).plan

    def apply(self, model: nn.Module, optimizer: Optimizer | None = None) -> TransferReport:
        """Write the selected layers, in place: the model keeps its parameters, and so does its optimizer.

        Raises:
            TransferError: Something does not fit or is missing; the message lists all. Or nothing would move.
            SelectionError: A rule matches nothing.
            HandlerError: A handler failed.
        """
        prepared = self._prepare(model)
        prepared.plan.check()
        write_all(_stage(prepared))
        return TransferReport(
            **{name: getattr(prepared.plan, name) for name in prepared.plan.__dataclass_fields__}
        )

    def _prepare(self, model: nn.Module) -> _Prepared:
        target = Target.of(model)
        selection = select_layers(self.select, target.layers)
        pairing = self._pair(target, selection.indices)
        choose = Chooser(self.handlers, self.on_mismatch, target.layers, target.derived)
        allow = allowance(self.allow_missing, target.layers)
        decision = decide(target, self.source, frozenset(selection.indices), pairing, choose, allow)
        choose.check_all_ran()
        plan = TransferPlan(
            entries=tuple(settle_ties(decision.entries, tie_groups(target.layers))),
            rules=selection.counts,
            mapping=pairing.text,
            origin=_origin(self.source),
            target=type(model).__name__,
            notes=tuple(pairing.notes)
            + tuple(f"set aside in the target's names: {p}" for p in target.set_aside),
            versions=versions(),
        )
        return _Prepared(plan, target, decision.conversions)

    def _pair(self, target: Target, selected: Sequence[int]) -> Pairing:
        if self.mapping == "name":
            return map_by_name(target.layers, self.source, lambda name: name, "name")
        if self.mapping == "order":
            return map_by_order(selected, self.source)
        if isinstance(self.mapping, Mapping):
            rename = renaming(self.mapping, [target.layers[place].name for place in selected])
            return map_by_name(target.layers, self.source, rename, "rules")
        if callable(self.mapping):
            return map_by_name(target.layers, self.source, self.mapping, "a function")
        raise ArgumentError(
            f"mapping must be 'name', 'order', 'structure', a dict or a function, got {self.mapping!r}"
        )


def transfer_layer(target: nn.Module, source: Layer | nn.Module, handlers: Handlers = ()) -> TransferReport:
    """Move one layer, all or nothing.

    Args:
        target: The module to write to, such as ``model.features[0]``.
        source: A layer of a checkpoint, or a module.
        handlers: As for :class:`WeightTransfer`.

    Raises:
        TransferError: The layer does not fit; the module is as it was.

    Example:
        >>> donor, conv = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        >>> transfer_layer(conv, donor).copied
        ('weight', 'bias')
    """
    layers = [replace(source, name="", index=0)] if isinstance(source, Layer) else source
    return WeightTransfer(layers, handlers=handlers).apply(target)


def _stage(prepared: _Prepared) -> list[Write]:
    """Run the conversions and pair each result with the tensor that it is written to."""
    destinations = {
        entry.key for entry in prepared.plan.entries if entry.bucket in ("copied", "adapted", "cast")
    }
    writes = []
    for conversion in prepared.conversions:
        values = conversion.values() or {}
        layer = conversion.target
        writes += [
            Write(layer.key(short), layer.tensors[short], value)
            for short, value in values.items()
            if layer.key(short) in destinations
        ]
    return writes


def _as_checkpoint(source: Source) -> Checkpoint:
    if isinstance(source, nn.Module):
        return Checkpoint(Target.of(source).layers, format="model")
    if isinstance(source, Sequence) and not isinstance(source, str | Checkpoint):
        return Checkpoint(source, format="layers")
    return read_checkpoint(source)


def _origin(source: Checkpoint) -> Origin:
    name = str(source.source) if source.source is not None else f"a {source.format}"
    return Origin(name, source.format, None, source.notes)
