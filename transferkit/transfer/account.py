"""The account of a transfer, before it (a plan) and after it (a report): every tensor in exactly one bucket."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

from transferkit.errors import ArgumentError, TransferError, listed
from transferkit.layers import Layer
from transferkit.transfer._entry import BUCKETS, MOVED, Entry, Origin, StateLine
from transferkit.transfer._refusal import nothing_moves, refusal
from transferkit.transfer._table import render_html, render_text
from transferkit.transfer._target import Target

SomeAccount = TypeVar("SomeAccount", bound="Account")


class Coverage(NamedTuple):
    """How much of the selected layers is moved: tensors and elements, each as (moved, selected)."""

    tensors: tuple[int, int]
    elements: tuple[int, int]

    def __str__(self) -> str:
        def part(moved: int, of: int, what: str) -> str:
            return f"{moved:,} of {of:,} {what} ({moved / of:.1%})" if of else f"0 of 0 {what}"

        return f"{part(*self.tensors, 'tensors')}, {part(*self.elements, 'elements')}"


@dataclass(frozen=True, repr=False)
class Account:
    """Every tensor of source and target in exactly one bucket, with the rules that put it there.

    Attributes:
        entries: One per target tensor in definition order, then one per source tensor that nothing uses.
        rules: The selection as it was written and how many layers it matches; then each simple rule in it.
        mapping: How source layers were found for target layers.
        origin: Where the source's tensors come from.
        target: Type of the target model.
        notes: What a reader of the account may want to know, one sentence each.
        versions: Of transferkit, torch and Python.
        states: What became of the optimizer state of the transferred parameters, if that was asked for.
        advice: Next steps, in a plan that has problems.
    """

    entries: tuple[Entry, ...]
    rules: tuple[tuple[str, int], ...]
    mapping: str
    origin: Origin
    target: str
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    states: tuple[StateLine, ...] = ()
    advice: tuple[str, ...] = ()

    def bucket(self, name: str) -> tuple[str, ...]:
        """Return the keys in a bucket: the target's, and the source's in ``unexpected``."""
        return tuple(entry.key for entry in self.entries if entry.bucket == name)

    @property
    def copied(self) -> tuple[str, ...]:
        """Target tensors that take a source tensor as it is."""
        return self.bucket("copied")

    @property
    def adapted(self) -> tuple[str, ...]:
        """Target tensors that take what a handler made."""
        return self.bucket("adapted")

    @property
    def cast(self) -> tuple[str, ...]:
        """Target tensors that take a source tensor in another dtype."""
        return self.bucket("cast")

    @property
    def tied(self) -> tuple[str, ...]:
        """Target tensors that are written through another name of the same memory."""
        return self.bucket("tied")

    @property
    def skipped(self) -> tuple[str, ...]:
        """Tensors that a rule leaves out."""
        return self.bucket("skipped")

    @property
    def mismatched(self) -> tuple[str, ...]:
        """Target tensors whose source does not fit."""
        return self.bucket("mismatched")

    @property
    def missing(self) -> tuple[str, ...]:
        """Target tensors that are selected and have no source."""
        return self.bucket("missing")

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Source tensors that nothing uses."""
        return self.bucket("unexpected")

    @property
    def coverage(self) -> Coverage:
        """How much of what was selected is moved."""
        selected = [entry for entry in self.entries if entry.bucket not in ("skipped", "unexpected")]
        moved = [entry for entry in selected if entry.bucket in MOVED]
        return Coverage(
            (len(moved), len(selected)), (sum(e.elements for e in moved), sum(e.elements for e in selected))
        )

    @classmethod
    def of(cls: type[SomeAccount], other: Account, **changed: Any) -> SomeAccount:
        """Return the same account at another stage: a plan that was carried out is a report."""
        values = {name: getattr(other, name) for name in other.__dataclass_fields__}
        return cls(**{**values, **changed})

    def to_dict(self) -> dict[str, Any]:
        """Return the account as plain values, for JSON or a run checkpoint. Reads the source's digest."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["entries"] = [entry.to_dict() for entry in self.entries]
        values["states"] = [line.to_dict() for line in self.states]
        values["origin"] = self.origin.to_dict()
        values["versions"] = dict(self.versions)
        return values

    @classmethod
    def from_dict(cls: type[SomeAccount], values: Mapping[str, Any]) -> SomeAccount:
        """Return the account that :meth:`to_dict` wrote."""
        read = {
            "entries": tuple(Entry.from_dict(entry) for entry in values["entries"]),
            "states": tuple(StateLine.from_dict(line) for line in values["states"]),
            "origin": Origin.from_dict(values["origin"]),
            "rules": tuple((text, count) for text, count in values["rules"]),
            "notes": tuple(values["notes"]),
            "advice": tuple(values["advice"]),
        }
        return cls(**{**values, **read})

    def __repr__(self) -> str:
        counts = [f"{len(keys)} {bucket}" for bucket in BUCKETS if (keys := self.bucket(bucket))]
        return f"{type(self).__name__}({self.origin.name} onto {self.target}: {', '.join(counts) or 'nothing'})"

    def __str__(self) -> str:
        return render_text(self)

    def _repr_html_(self) -> str:
        return render_html(self)


def versions() -> dict[str, str]:
    """Return the versions that a transfer's result may depend on."""
    try:
        own = version("transferkit")
    except PackageNotFoundError:  # run from a checkout that is not installed
        own = "not installed"
    return {"transferkit": own, "torch": str(torch.__version__), "python": platform.python_version()}


# What a transfer would do, and whether it may.


@dataclass(frozen=True, repr=False)
class TransferPlan(Account):
    """What :meth:`WeightTransfer.apply` would do, from shapes alone: print it, compare it, store it."""

    @property
    def problems(self) -> tuple[Entry, ...]:
        """The entries that no rule explains: mismatched, or missing without being allowed to."""
        return tuple(entry for entry in self.entries if entry.is_problem)

    def check(self) -> None:
        """Raise what :meth:`WeightTransfer.apply` would raise for this plan.

        Raises:
            TransferError: Tensors are missing or mismatched, or nothing would be moved. The message lists all
                of them with what to do next.
        """
        problems = self.problems
        if problems:
            raise TransferError(refusal(self, problems))
        if not any(entry.bucket in MOVED for entry in self.entries):
            raise TransferError(nothing_moves(self))


# What a transfer did, and what training needs to know of it.


@dataclass(frozen=True, repr=False)
class TransferReport(Account):
    """What a transfer did: every tensor of source and target in exactly one bucket.

    It knows the parameters that were written by the objects themselves, for as long as they live, wherever in a model
    they are later. A copy, a pickle and :meth:`to_dict` have names and shapes alone.
    """

    parameters: tuple[ref[nn.Parameter], ...] | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON or a run checkpoint. Reads the source's digest."""
        values = super().to_dict()
        del values["parameters"]
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "parameters": None}

    @property
    def moved(self) -> tuple[str, ...]:
        """Keys of the target tensors that hold the source's values now: copied, adapted, cast or tied."""
        return tuple(entry.key for entry in self.entries if entry.bucket in MOVED)

    def parameters_in(self, model: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of a model that hold the source's values, frozen ones included.

        Raises:
            ArgumentError: There is none: the model is a copy, or another one.
        """
        if self.parameters is None:
            return self._by_names(model)
        written = {id(one) for reference in self.parameters if (one := reference()) is not None}
        moved = [parameter for parameter in model.parameters() if id(parameter) in written]
        if self.parameters and not moved:
            raise ArgumentError(
                f"no parameter of this {type(model).__name__} was transferred: the report on {self.target} is about "
                "other parameters; give the model that apply() wrote to. A copy of it is told by names and shapes: "
                "TransferReport.from_dict(report.to_dict())"
            )
        return moved

    def _by_names(self, model: nn.Module) -> list[nn.Parameter]:
        shapes = {
            entry.key: tuple(entry.target.shape)
            for entry in self.entries
            if entry.bucket in MOVED and entry.target
        }
        present = {
            layer.key(short): tensor
            for layer in Target.of(model).layers
            for short, tensor in layer.tensors.items()
            if isinstance(tensor, nn.Parameter)
        }
        moved = [tensor for key, tensor in present.items() if shapes.get(key) == tuple(tensor.shape)]
        if shapes and not moved:
            both = [
                f"{key} is {list(shape)} in the report and "
                f"{list(present[key].shape) if key in present else 'absent'} in the model"
                for key, shape in shapes.items()
            ]
            raise ArgumentError(
                f"no parameter of this {type(model).__name__} has a name and shape of the report on {self.target}; "
                f"give a model of that architecture: {listed(both, most=3)}"
            )
        return moved

    def parameter_groups(
        self,
        model: nn.Module,
        *,
        transferred: Mapping[str, Any],
        new: Mapping[str, Any],
        decay_biases_and_norms: bool = True,
    ) -> list[dict[str, Any]]:
        """Split the model's trainable parameters into groups for an optimizer.

        A parameter is transferred if it is one that the transfer wrote, whatever the model around it: a new head
        under an old name is new, and a backbone that was put into another model is transferred. A report that was
        copied, pickled or read has only names and shapes to tell by, and warns.

        Args:
            model: The model that was transferred to, or one that holds it; also after its head was replaced, layers
                were frozen, or it was wrapped.
            transferred: Options of the groups of transferred parameters, ``{"lr": 1e-5}``.
            new: Options of the groups of all others, ``{"lr": 1e-3}``.
            decay_biases_and_norms: ``False`` gives biases, norm layers and all parameters of one dimension or none
                groups with ``weight_decay`` 0.

        Raises:
            ArgumentError: Nothing in the model is trainable, or the report fits none of its parameters.
        """
        moved = self.parameters_in(model)
        if self.parameters is None:
            warnings.warn(
                "the report was copied or read, so transferred parameters are told by names and shapes: a new layer "
                "of an old name and shape counts as transferred",
                stacklevel=2,
            )
        return parameter_groups(
            model,
            moved,
            transferred=transferred,
            new=new,
            decay_biases_and_norms=decay_biases_and_norms,
        )


# Parameter groups for an optimizer: transferred and new layers at their own learning rates.


def parameter_groups(
    model: nn.Module,
    moved: Collection[nn.Parameter],
    *,
    transferred: Mapping[str, Any],
    new: Mapping[str, Any],
    decay_biases_and_norms: bool = True,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into groups; each stands in exactly one, frozen ones in none.

    Args:
        model: The model that was transferred to.
        moved: The parameters that were transferred.
        transferred: Options of the groups of transferred parameters, ``{"lr": 1e-5}``.
        new: Options of the groups of all others.
        decay_biases_and_norms: ``False`` puts what the field does not decay into groups of their own with
            ``weight_decay`` 0: parameters of one dimension or none (biases under any name, the weights of norms,
            scales), all of norm layers, and what is called a bias.

    Returns:
        Up to four groups with ``params``, ``name`` and the options; empty ones are left out.

    Raises:
        ArgumentError: Nothing in the model is trainable.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        >>> groups = parameter_groups(net, [*net[0].parameters()], transferred={"lr": 1e-5}, new={"lr": 1e-3})
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('transferred', 1e-05, 2), ('new', 0.001, 2)]
    """
    options, old = {"transferred": dict(transferred), "new": dict(new)}, {id(parameter) for parameter in moved}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    seen: set[int] = set()
    for layer in Target.of(model).layers:
        for short, tensor in layer.tensors.items():
            if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name = "transferred" if id(tensor) in old else "new"
            decayed = decay_biases_and_norms or not _is_bias_or_norm(layer, short, tensor)
            groups.setdefault((name, decayed), {"params": []})["params"].append(tensor)
    if not groups:
        raise ArgumentError(
            "no parameter of the model is trainable; unfreeze(model, every()), or those layers that are to be trained"
        )
    return [
        {**group, **options[name], "name": name}
        if decayed
        else {**group, **options[name], "name": f"{name}, no decay", "weight_decay": 0.0}
        for (name, decayed), group in sorted(
            groups.items(), key=lambda item: (item[0][0] == "new", not item[0][1])
        )
    ]


def _is_bias_or_norm(layer: Layer, short: str, tensor: Tensor) -> bool:
    return tensor.ndim <= 1 or layer.kind == "norm" or short.rpartition(".")[2].startswith("bias")
