"""Read the model files of Nervana's neon, versions 1.0 to 2.6, into torch's layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.neon.dropout import plan_dropout
from transferkit.checkpoints.neon.first_version import records_of_first_version
from transferkit.checkpoints.neon.layouts import NotConvertibleError, layout_of
from transferkit.checkpoints.neon.notes import notes_of
from transferkit.checkpoints.neon.optimizer import optimizer_of, torch_states
from transferkit.checkpoints.neon.records import Array, Container, Record, Steps, tree_of
from transferkit.errors import CheckpointError

_BIAS_OF = frozenset(["Convolution", "Deconvolution", "Linear", ""])  # "" where a file does not name types


def is_neon(saved: object) -> bool:
    """Whether what a pickle holds is a neon model."""
    return isinstance(saved, Mapping) and ("layer_params_states" in saved or _is_model(saved.get("model")))


def neon_contents(saved: Mapping[str, Any], options: ReadOptions) -> Contents:
    """Return the tensors of a neon model in torch's layout and under torch's names.

    Raises:
        CheckpointError: It is not a neon model, or none of its layers can be converted.
    """
    first_version = "layer_params_states" in saved
    steps = records_of_first_version(saved["layer_params_states"]) if first_version else tree_of(saved["model"])
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


@dataclass(frozen=True)
class _Pair:
    """A layer with weights, and the separate bias layer behind it if there is one."""

    weights: Record
    bias: Record | None = None


@dataclass(frozen=True)
class _Converted:
    """One layer in torch's layout, or why there is none."""

    name: str
    number: int
    tensors: Mapping[str, Tensor]
    states: Mapping[str, Mapping[str, Tensor]]
    problem: str = ""


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


def _converted(pair: _Pair, scale: float, optimizer: Any) -> _Converted:
    """Convert a layer: rearrange, scale as dropout asks, join the bias."""
    record = pair.weights
    tensors: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {}
    try:
        for part in filter(None, (record, pair.bias)):
            kind, settings = optimizer_of(optimizer, part.name.rpartition(".")[2], part.type)
            for name, (key, rearrange) in layout_of(part).items():
                factor = _factor(part.type, name, scale)
                tensors[name] = _tensor(rearrange(part.params[key]), factor)
                if key in part.states:
                    found = torch_states(part.states[key], kind, settings, factor)
                    states[name] = {state: _tensor(rearrange(array)) for state, array in found.items()}
        _check_bias(record, tensors)
    except NotConvertibleError as error:
        return _Converted(
            record.name, record.number, {}, {}, f"{record.name} ({record.type or 'unknown'}): {error}"
        )
    if "running_mean" in tensors:
        # neon does not count batches; torch itself fills in 0 for a file from before it did.
        tensors["num_batches_tracked"] = torch.tensor(0)
    return _Converted(record.name, record.number, tensors, states)


def _factor(type_: str, name: str, scale: float) -> float:
    """Return what to multiply a tensor by so that its layer takes inputs that lack the factor ``scale``."""
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


def _metadata(saved: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: saved.get(key) for key in ("neon_version", "epoch_index", "train_input_shape")}
    return {key: value for key, value in plain.items() if isinstance(value, str | int | tuple)}


def _is_model(entry: object) -> bool:
    config = entry.get("config") if isinstance(entry, Mapping) else None
    return isinstance(config, Mapping) and "layers" in config
