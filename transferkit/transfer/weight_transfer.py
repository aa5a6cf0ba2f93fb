"""``WeightTransfer``: select, map, convert, check everything, then write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import IO, Literal, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import ArgumentError, TransferError, listed
from transferkit.layers import Layer
from transferkit.memory import place_of
from transferkit.transfer._conversion import Chooser, Conversion, Excuses, Handlers
from transferkit.transfer._decide import AllowMissing, allowance, decide, keeping, require_kept
from transferkit.transfer._entry import MOVED, WRITTEN, Origin
from transferkit.transfer._mapping import Pairing, map_by_function, map_by_name, map_by_order, renaming
from transferkit.transfer._shards import together
from transferkit.transfer._states import NO_STATES, MovedStates, install_states, move_states, optimizer_notes
from transferkit.transfer._target import Target, packed_modules, settle_ties, settle_views, tie_groups
from transferkit.transfer._transformers import in_live_names
from transferkit.transfer._write import Transaction, Write, materialize, require_real, stage, unchecked
from transferkit.transfer.account import TransferPlan, TransferReport, versions
from transferkit.transfer.handlers.attention import ways_to_join
from transferkit.transfer.parts import Sources
from transferkit.transfer.select import Predicate, every, select_layers
from transferkit.transfer.structure import ByStructure, map_by_structure

MappingRule = str | ByStructure | Mapping[str | re.Pattern[str], Sources] | Callable[[str], Sources]
Source = Checkpoint | nn.Module | Mapping[str, Tensor] | Sequence[Layer] | str | os.PathLike[str] | IO[bytes]


class _Prepared(NamedTuple):
    """A model looked at, the plan for it, and the conversions that carry the plan out."""

    target: Target
    plan: TransferPlan
    conversions: Sequence[Conversion]


class _Staged(NamedTuple):
    """What is ready to be written, and what the report will say of it."""

    prepared: _Prepared
    writes: Sequence[Write]
    moved: MovedStates
    notes: Sequence[str]


class WeightTransfer:
    """Moves layers of a source onto a model: chosen by a rule, found by a mapping, all of them or none.

    Args:
        source: A checkpoint, a path to one, a state dict, a live module, or layers of any of these.
        select: Which of the *target's* layers are written; a rule or a callable ``(index, layer) -> bool``.
        mapping: Which source layer serves a selected layer: ``"name"`` that of the same name; ``"order"`` the
            i-th for the i-th; ``"structure"`` the one that stands in its place by the shapes of all layers, or
            :class:`ByStructure` with some pairs given; a dict from target to source names, globs or regular
            expressions (what it does not mention maps to its own name); or a function from a selected layer's name.
            For a name stands also a :class:`Part` of a layer, or several layers, joined in that order:
            ``{"attn.qkv": ("query", "key", "value")}``.
        handlers: Handlers or names of handlers that convert layers which do not fit as they are; or a dict that
            aims handlers at layers, ``{"features.0": "input_channels"}``.
        on_mismatch: ``"error"``, or ``"adapt"`` to try every registered handler on what does not fit.
        allow_missing: Globs (``"classifier.*"``) or a rule for what the source need not have.
        keep: Globs on tensor keys (``"*.relative_position_index"``) for what stays as it is in selected layers.
        load_states: Also move optimizer state (momentum, moving averages, step counts) of the layers. The source's
            optimizer must be of the same class, or, in a file that names none, have the same hyperparameters.
        device: Where parameters of a model on the meta device are materialized.

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
        mapping: MappingRule = "name",
        handlers: Handlers = (),
        on_mismatch: Literal["error", "adapt"] = "error",
        allow_missing: AllowMissing = None,
        keep: str | Sequence[str] = (),
        load_states: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.source = _as_checkpoint(source)
        self._given = select
        self.select = every() if select is None else select
        self.mapping = mapping
        self.handlers = handlers
        self.on_mismatch = on_mismatch
        self.allow_missing = allow_missing
        self.keep = keep
        self.load_states = load_states
        self.device = device

    def __repr__(self) -> str:
        return f"WeightTransfer({self.source!r}, select={self.select!r}, mapping={self.mapping!r})"

    def plan(self, model: nn.Module, optimizer: Optimizer | None = None) -> TransferPlan:
        """Return what :meth:`apply` would do, from names, shapes and dtypes alone. Nothing is written.

        Args:
            model: The target; a model on the meta device will do.
            optimizer: The one that :meth:`apply` will be given.

        Raises:
            SelectionError: A rule matches nothing.
            ArgumentError: A model with lazy parameters, an unknown handler or mapping, ``load_states`` without an
                optimizer.
            HandlerError: A handler failed.
        """
        return self._prepare(model, optimizer).plan

    def apply(self, model: nn.Module, optimizer: Optimizer | None = None) -> TransferReport:
        """Write the selected layers, in place: the model keeps its parameters, and so does its optimizer.

        Whatever fails, the model and the optimizer are as they were. Of a model that ``fully_shard`` or tensor
        parallelism spread over ranks, all call this together, and each writes and reads its own part.

        Args:
            model: The target; changed in place.
            optimizer: Receives the optimizer state of the transferred layers, if ``load_states``.

        Raises:
            TransferError: Something does not fit or is missing; the message lists all. Or nothing would move.
            SelectionError: A rule matches nothing.
            ArgumentError: As :meth:`plan`; or a model on the meta device and no ``device``.
            HandlerError: A handler failed.
        """
        staged = together(model, lambda: self._stage(model, optimizer))
        target, plan, _ = staged.prepared
        with Transaction() as transaction:

            def make_room() -> Mapping[Hashable, Tensor]:
                made = materialize(target, plan.entries, self.device, transaction)
                if optimizer is not None:
                    install_states(optimizer, staged.moved.states, transaction)
                return made

            made = together(model, make_room)
            transaction.write([write.onto(made.get(place_of(write.destination))) for write in staged.writes])
        notes = (*plan.notes, *staged.notes)
        return TransferReport.of(
            plan, states=staged.moved.lines, notes=notes, parameters=_parameters(model, plan)
        )

    def _stage(self, model: nn.Module, optimizer: Optimizer | None) -> _Staged:
        """Do all that can fail and changes nothing: check the plan, make the values, look at them."""
        prepared = self._prepare(model, optimizer)
        _, plan, conversions = prepared
        plan.check()
        written = {entry.key for entry in plan.entries if entry.bucket in WRITTEN}
        tied_to = {e.key: e.tied_to for e in plan.entries if e.tied_to}
        writes = stage(conversions, written, tied_to)
        unread = unchecked(writes, {*plan.adapted, *plan.cast})
        moved = NO_STATES
        if self.load_states and optimizer is not None:
            moved = move_states(optimizer, conversions, written, tied_to, self.source.notes)
        notes = [f"{len(unread)} large tensors were not searched for NaN"] if unread else []
        if optimizer is not None:
            require_real(optimizer)
            notes += [*moved.notes, *optimizer_notes(model, optimizer, moved.states)]
        return _Staged(prepared, writes, moved, notes)

    def _prepare(self, model: nn.Module, optimizer: Optimizer | None) -> _Prepared:
        if self.load_states and optimizer is None:
            raise ArgumentError("load_states=True needs the optimizer: apply(model, optimizer)")
        target = Target.of(model)
        packed = self._packed(model)
        selection = select_layers(self.select, target.layers)
        excuses = Excuses(keeping(self.keep, target.layers), allowance(self.allow_missing, target.layers))
        choose = Chooser(self.handlers, self.on_mismatch, target, excuses)
        named, renamed = in_live_names(model, self.source) if self.mapping == "name" else (self.source, ())
        pairing = self._pair(target, selection.indices, choose, choose.join(named))
        decision = decide(target, pairing, frozenset(selection.indices), choose, excuses)
        entries = settle_ties(decision.entries, tie_groups(target.layers))
        entries = settle_views(entries, target.layers)
        require_kept(entries, target.layers, excuses.keep)
        plan = TransferPlan(
            entries=tuple(entries),
            rules=selection.counts,
            mapping=pairing.text,
            origin=Origin.of(self.source),
            target=type(model).__name__,
            notes=(*target.notes, *packed, *renamed),
            versions=versions(),
            advice=(*pairing.advice, *_ways_to_join(target, choose, pairing)),
        )
        if not plan.problems:
            choose.check_all_ran()
        return _Prepared(target, plan, decision.conversions)

    def _packed(self, model: nn.Module) -> list[str]:
        """Refuse a model some of whose weights cannot be seen; where a rule says what is meant, note it."""
        names = [repr(name) for name in packed_modules(model)]
        if names and self._given is None:
            raise TransferError(
                f"weights of {len(names)} modules are packed (quantized), not parameters or buffers; they cannot "
                f"be written: {listed(names)}; transfer to the model before it is quantized, or give select=every() "
                "to leave them as they are and write the other layers"
            )
        return (
            [f"packed weights of {len(names)} modules were left as they are: {listed(names)}"] if names else []
        )

    def _pair(
        self, target: Target, selected: Sequence[int], choose: Chooser, sources: Sequence[Layer]
    ) -> Pairing:
        layers, mapping = target.layers, self.mapping
        told = [*choose.replaced, *sources]  # what has a name, whatever was made of it
        if mapping == "name":
            return map_by_name(layers, selected, sources)
        if mapping == "order":
            return map_by_order(layers, selected, sources)
        if mapping == "structure":
            return map_by_structure(layers, selected, sources, {})
        if isinstance(mapping, ByStructure):
            return map_by_structure(layers, selected, sources, mapping.known, choose.replaced)
        if isinstance(mapping, Mapping):
            rename = renaming(mapping, [layer.name for layer in layers])
            return map_by_name(layers, selected, told, rename, "rules")
        if callable(mapping):
            return map_by_function(layers, selected, told, mapping)
        raise ArgumentError(
            f"mapping must be 'name', 'order', 'structure', a dict or a function, got {mapping!r}"
        )


def _ways_to_join(target: Target, choose: Chooser, pairing: Pairing) -> tuple[str, ...]:
    """Tell how layers that have no source could be put together from those that nothing uses."""
    used = set(pairing.source_of.values())
    free = [layer for place, layer in enumerate(pairing.sources) if place not in used]
    absent = [target.layers[place] for place in pairing.absent]
    return ways_to_join(free, absent, choose.tried) if absent and free else ()


def _parameters(model: nn.Module, plan: TransferPlan) -> tuple[ref[nn.Parameter], ...]:
    """Return the parameters that the plan wrote, as they are in the model now: a meta model's were replaced."""
    moved = {entry.key for entry in plan.entries if entry.bucket in MOVED}
    return tuple(
        ref(tensor)
        for layer in Target.of(model).layers
        for short, tensor in layer.tensors.items()
        if isinstance(tensor, nn.Parameter) and layer.key(short) in moved
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


def _as_checkpoint(source: Source) -> Checkpoint:
    if isinstance(source, nn.Module):
        Target.of(source)  # refuses lazy parameters
        return Checkpoint.from_model(source)
    if isinstance(source, Sequence) and not isinstance(source, str | Checkpoint):
        return Checkpoint(source, format="layers")
    return read_checkpoint(source)
