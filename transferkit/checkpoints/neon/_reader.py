"""Read the model files of Nervana's neon, versions 1.0 to 2.6, into torch's layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.checkpoints._optimizers import ParameterState, name_of
from transferkit.checkpoints.neon._dropout import DropoutPlan, plan_dropout
from transferkit.checkpoints.neon._layouts import NotConvertibleError, layout_of
from transferkit.checkpoints.neon._records import (
    Array,
    Container,
    Record,
    Steps,
    records_of,
    records_of_first_version,
    refuse_repeats,
    tree_of,
)
from transferkit.checkpoints.registry import Contents, ReadOptions
from transferkit.errors import CheckpointError

_BIAS_OF = frozenset(["Convolution", "Deconvolution", "Linear", ""])  # "" where a file does not name types


def is_neon(saved: object) -> bool:
    """Whether what a pickle holds is a neon model."""
    return isinstance(saved, Mapping) and ("layer_params_states" in saved or _is_model(saved.get("model")))


def _is_model(entry: object) -> bool:
    config = entry.get("config") if isinstance(entry, Mapping) else None
    return isinstance(config, Mapping) and "layers" in config


def neon_contents(saved: Mapping[str, Any], options: ReadOptions) -> Contents:
    """Return the tensors of a neon model in torch's layout and under torch's names.

    Raises:
        CheckpointError: It is not a neon model, or none of its layers can be converted.
    """
    first_version = "layer_params_states" in saved
    steps = records_of_first_version(saved["layer_params_states"]) if first_version else tree_of(saved["model"])
    refuse_repeats(steps)
    backend = saved.get("backend")
    caffe = isinstance(backend, Mapping) and backend.get("compat_mode") == "caffe"
    dropout = plan_dropout(steps, caffe=caffe)
    scales = dropout.scales if options.fold_dropout else {}
    found = [
        _converted(pair, scales.get(pair.weights.name, 1.0), saved.get("optimizer")) for pair in _pairs(steps)
    ]
    layers = [layer for layer in found if not layer.problem]
    problems = [layer.problem for layer in found if layer.problem]
    if not layers:
        raise CheckpointError(
            f"no layer of this neon model has a counterpart in torch: {'; '.join(problems[:3])}"
        )
    return Contents(
        tensors={f"{layer.name}.{key}": tensor for layer in layers for key, tensor in layer.tensors.items()},
        states={
            f"{layer.name}.{key}": state for layer in layers for key, state in layer.states.items() if state
        },
        notes=notes_of(steps, problems, dropout, folded=options.fold_dropout, untyped=first_version),
        metadata=_metadata(saved),
        raw_index={layer.name: layer.number for layer in layers},
        format="neon",
    )


def _metadata(saved: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: saved.get(key) for key in ("neon_version", "epoch_index", "train_input_shape")}
    return {key: value for key, value in plain.items() if isinstance(value, str | int | tuple)}


# Conversion of one layer: its arrays in torch's layout, its bias joined, its dropout factor multiplied in.


@dataclass(frozen=True)
class _Pair:
    """A layer with weights, and the separate bias layer behind it if there is one."""

    weights: Record
    bias: Record | None = None


def _pairs(steps: Steps) -> Iterator[_Pair]:
    """Yield the layers that have parameters, each with the bias that directly follows it."""
    held: Record | None = None
    for step in steps:
        if isinstance(step, Record) and step.type == "Bias" and held is not None:
            yield _Pair(held, step)
            held = None
            continue
        if held is not None:
            yield _Pair(held)
            held = None
        if isinstance(step, Container):
            for branch in step.branches:
                yield from _pairs(branch)
        elif step.type in _BIAS_OF and step.params:
            held = step
        elif step.params:
            yield _Pair(step)
    if held is not None:
        yield _Pair(held)


@dataclass(frozen=True)
class _Converted:
    """One layer in torch's layout, or why there is none."""

    name: str
    number: int
    tensors: Mapping[str, Tensor]
    states: Mapping[str, ParameterState]
    problem: str = ""


def _converted(pair: _Pair, scale: float, optimizer: Any) -> _Converted:
    """Convert a layer: rearrange its arrays, scale them for dropout, join the bias."""
    record = pair.weights
    tensors: dict[str, Tensor] = {}
    states: dict[str, ParameterState] = {}
    try:
        for part in filter(None, (record, pair.bias)):
            kind, settings = optimizer_of(optimizer, part.name.rpartition(".")[2], part.type)
            for name, (key, rearrange) in layout_of(part).items():
                factor = _factor(part.type, name, scale)
                tensors[name] = _tensor(rearrange(part.params[key]), factor)
                if key in part.states:
                    found = torch_states(part.states[key], kind, settings, factor)
                    arrays = {state: _tensor(rearrange(array)) for state, array in found.items()}
                    states[name] = ParameterState(arrays, made_by=_class_of(kind))
        _check_bias(record, tensors)
    except NotConvertibleError as error:
        return _Converted(
            record.name, record.number, {}, {}, f"{record.name} ({record.type or 'unknown'}): {error}"
        )
    if "running_mean" in tensors:
        # neon does not count batches; torch itself fills in 0 for files older than its own count.
        tensors["num_batches_tracked"] = torch.tensor(0)
    return _Converted(record.name, record.number, tensors, states)


def _factor(type_: str, name: str, scale: float) -> float:
    """Return the factor of a tensor that makes its layer scale its inputs by ``scale``."""
    if type_.startswith("BatchNorm"):  # (s*x - mean) * gamma = (x - mean/s) * (s*gamma)
        return {"weight": scale, "running_mean": 1 / scale}.get(name, 1.0)
    return scale if name == "weight" or name.startswith("weight_ih") else 1.0


def _tensor(array: Array, factor: float = 1.0) -> Tensor:
    if factor != 1:
        array = array * array.dtype.type(factor)
    return torch.from_numpy(np.ascontiguousarray(array))


def _check_bias(record: Record, tensors: Mapping[str, Tensor]) -> None:
    if "bias" in tensors and "weight" in tensors:
        outputs = tensors["weight"].shape[1 if record.type == "Deconvolution" else 0]
        if tensors["bias"].numel() != outputs:
            raise NotConvertibleError(f"a bias of {tensors['bias'].numel()} for {outputs} outputs")


# Optimizer states under torch's names and in torch's units.


# torch's names for neon's states, in neon's order. Adadelta has a third array, the last step, which nothing reads.
_NAMES = {
    "GradientDescentMomentum": ("momentum_buffer",),
    "RMSProp": ("square_avg",),
    "Adagrad": ("sum",),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adam": ("exp_avg", "exp_avg_sq"),
}
_IN_TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "GradientDescentMomentum": torch.optim.SGD,
    "RMSProp": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "Adam": torch.optim.Adam,
}
_OF_SQUARES = frozenset(["square_avg", "sum", "exp_avg_sq"])


def _class_of(optimizer: str) -> str:
    """Return the dotted name of torch's class for a class of neon's, or neon's own."""
    return name_of(_IN_TORCH[optimizer]) if optimizer in _IN_TORCH else f"neon's {optimizer or 'optimizer'}"


def optimizer_of(entry: Any, name: str, type_: str) -> tuple[str, Mapping[str, Any]]:
    """Return the class and settings of the optimizer that trained a layer.

    neon's ``MultiOptimizer`` chooses by the layer's name, then by its class, then ``"default"``.

    Args:
        entry: The file's ``"optimizer"``.
        name: The layer's own name.
        type_: The layer's class.
    """
    if not isinstance(entry, Mapping):
        return "", {}
    config = entry.get("config", {})
    config = config if isinstance(config, Mapping) else {}
    mapping = config.get("optimizer_mapping")
    if isinstance(mapping, Mapping):
        chosen = mapping.get(name, mapping.get(type_, mapping.get("default")))
        return optimizer_of(chosen, name, type_) if chosen is not entry else ("", {})
    return str(entry.get("type", "")).rpartition(".")[2], config


def torch_states(
    states: tuple[Array, ...], optimizer: str, config: Mapping[str, Any], scale: float
) -> dict[str, Array]:
    """Return a parameter's states by torch's names; ``state_0`` and so on for an optimizer torch does not have.

    neon's velocity is ``-learning_rate`` times torch's momentum buffer. A weight multiplied by ``scale`` has
    gradients divided by it, and so are the states made of gradients.

    Args:
        states: neon's states, in its order.
        optimizer: neon's class.
        config: The optimizer's settings.
        scale: Factor that the parameter itself was multiplied by.
    """
    names = _NAMES.get(optimizer, tuple(f"state_{place}" for place in range(len(states))))
    result = dict(zip(names, states, strict=False))
    if "momentum_buffer" in result:
        rate = config.get("learning_rate")
        if not isinstance(rate, int | float) or rate == 0:
            return {}
        result["momentum_buffer"] = result["momentum_buffer"] / -rate
    if scale != 1 and optimizer in _NAMES:
        for name in result:
            result[name] = result[name] * (scale**2 if name == "acc_delta" else 1 / scale ** _power(name))
    return result


def _power(name: str) -> int:
    return 2 if name in _OF_SQUARES else 1


# Notes: what a user of a neon file should know and its tensors do not say.


def notes_of(
    steps: Steps, problems: list[str], dropout: DropoutPlan, *, folded: bool, untyped: bool
) -> tuple[str, ...]:
    """Return the notes on a neon model, one sentence each.

    Args:
        steps: Its layers.
        problems: Layers that could not be converted, each with the reason.
        dropout: The factors of its dropout layers.
        folded: Whether the weights were scaled by them.
        untyped: Whether the file names no layer types, as in version 1.0.
    """
    records = list(records_of(steps))
    notes = [f"not convertible, left out: {'; '.join(problems)}"] if problems else []
    if untyped:
        notes.append(_untyped_note(records))
    if dropout.scales:
        notes.append(_dropout_note(dropout, folded=folded))
    if dropout.unplaced:
        notes.append(
            f"dropout at {', '.join(dropout.unplaced)}: no layer after it can absorb its factor; multiply its "
            "output by keep when testing to compute the same as neon"
        )
    notes += _batch_norm_note(records)
    if any(record.states for record in records):
        notes.append(
            "optimizer states are in torch's units (momentum_buffer = velocity / -learning_rate), exact where "
            "the learning rate was constant"
        )
    return tuple(notes)


def _dropout_note(dropout: DropoutPlan, *, folded: bool) -> str:
    layers = ", ".join(f"{name} x {factor:g}" for name, factor in dropout.scales.items())
    if folded:
        return (
            f"input weights scaled by the dropout before them ({layers}): neon scales by keep when testing, "
            "torch by 1/keep when training; so both compute the same. fold_dropout=False leaves them as stored"
        )
    return (
        f"neon's dropout multiplies by keep when testing, torch's does not; to make up for it, scale {layers}"
    )


def _batch_norm_note(records: list[Record]) -> list[str]:
    norms = [record for record in records if record.type.startswith("BatchNorm") and record.params]
    if not norms:
        return []
    settings = {(record.config.get("eps"), record.config.get("rho")) for record in norms}
    eps, rho = next(iter(settings)) if len(settings) == 1 else (None, None)
    eps, rho = eps or 1e-3, rho or 0.9
    return [f"neon's batch norm is torch's with eps={eps:g} and momentum={1 - rho:g}; set both in the model"]


def _untyped_note(records: list[Record]) -> str:
    types = ", ".join(f"{record.name} {record.type or '?'}" for record in records if record.type != "Bias")
    return f"the file has no layer types (neon 1.0); inferred from the shapes: {types}"
