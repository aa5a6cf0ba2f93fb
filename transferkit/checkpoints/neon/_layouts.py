"""The parameters of neon's layers as the table of layouts wants them: whole kernels, and the parts of a matrix.

neon puts features first and the batch last, so a convolution's weights are a matrix of (C*T*R*S, K) with the
output channels K last, where torch has (K, C, T, R, S).

A recurrent layer of neon has one matrix: the rows of the input weights, then of the recurrent weights, then one row
of biases. Each part is read as (gates * N, inputs) row by row, N being the number of units. neon's bias becomes the
first of torch's two biases, and the second is zero.

Every conversion is a rearrangement, so the same function serves a weight and the optimizer state of that weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from transferkit.checkpoints.layouts import LAYOUTS, WHY_NOT, Row, row_for, sources_of, turned
from transferkit.checkpoints.neon._records import Array, Record

Layout = dict[str, tuple[str, Callable[[Array], Array]]]
_GATES = {"Recurrent": 1, "BiRNN": 1, "LSTM": 4, "BiLSTM": 4}
_OPTIONAL = ("weight_bias",)


class NotConvertibleError(Exception):
    """A layer has no exact counterpart in torch; the message says why."""


def layout_of(record: Record) -> Layout:
    """Return, for each torch tensor of a layer, the neon parameter it comes from and the rearrangement.

    Raises:
        NotConvertibleError: torch has no layer that computes the same.

    Example:
        >>> import numpy as np
        >>> record = Record(0, "conv1", "Convolution", {"fshape": (3, 3, 8)}, {"W": np.zeros((27, 8))})
        >>> key, rearrange = layout_of(record)["weight"]
        >>> rearrange(record.params[key]).shape
        (8, 3, 3, 3)
    """
    try:
        row = row_for("neon", record.type)
        if record.type in _GATES or ("neon", record.type) in WHY_NOT:
            return _recurrent(record)
        if row is None:
            raise NotConvertibleError(f"no torch layer for neon's {record.type or 'unnamed type'}")
        prepare = _PREPARED.get(record.type)
        return _by_row(record, row, prepare(record) if prepare else _same)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise NotConvertibleError(f"its parameters do not fit its description ({error})") from error


def _by_row(record: Record, row: Row, prepare: Callable[[Array], Array]) -> Layout:
    """Return the layout that a row of the table gives a layer whose first array is prepared for it."""
    layout: Layout = {}
    for name, recipe in row.items():
        (key,) = sources_of({name: recipe})
        if (key in record.params or key not in _OPTIONAL) and record.params[key].size:
            layout[name] = key, _turn(name, recipe, key, prepare if key == "W" else _same)
    return layout


def _turn(name: str, recipe: str, key: str, prepare: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return the function that prepares an array and turns it by its row."""

    def rearrange(array: Array) -> Array:
        made: Array = turned({key: torch.from_numpy(prepare(array))}, {name: recipe})[name].numpy()
        return made

    return rearrange


def _convolution(record: Record) -> Callable[[Array], Array]:
    kernel = filter_shape(record.config["fshape"])
    rows, outputs = record.params["W"].shape
    if rows % math.prod(kernel):
        raise ValueError(f"{rows} rows for a kernel of {kernel}")
    return lambda weight: weight.reshape(rows // math.prod(kernel), *kernel, outputs)


def filter_shape(fshape: Any) -> tuple[int, ...]:
    """Return the kernel of a convolution: (R, S), or (T, R, S) in three dimensions.

    neon writes a tuple that ends with the number of channels, or a dict of letters.
    """
    if isinstance(fshape, Mapping):
        sides = [fshape[letter] for letter in "TRS" if letter in fshape]
        sides = sides[1:] if len(sides) == 3 and sides[0] == 1 else sides
    else:
        sides = list(fshape)[:-1]
    if len(sides) not in (2, 3) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"fshape {fshape!r}")
    return tuple(sides)


def _linear(record: Record) -> Callable[[Array], Array]:
    if record.params["W"].ndim != 2:
        raise ValueError(f"weights of shape {record.params['W'].shape}")
    return _same


def _lookup_table(record: Record) -> Callable[[Array], Array]:
    vocabulary, width = record.config["vocab_size"], record.config["embedding_dim"]
    shape = record.params["W"].shape
    if vocabulary == width:
        raise ValueError("a square table, whose orientation differs between versions of neon")
    if shape == (width, vocabulary):
        return lambda table: table.T
    if shape != (vocabulary, width):
        raise ValueError(f"a table of shape {shape} for {vocabulary} words of {width}")
    return _same


def _recurrent(record: Record) -> Layout:
    reason, layout = recurrent_layout(record)
    if reason:
        raise NotConvertibleError(reason)
    return layout


def recurrent_layout(record: Record) -> tuple[str, Layout]:
    """Return the reason why a recurrent layer has no torch counterpart (empty if it has one), and its layout."""
    if reason := WHY_NOT.get(("neon", record.type)):
        return reason, {}
    activation, gate = _transform(record.config, "activation"), _transform(record.config, "gate_activation")
    if record.type in ("LSTM", "BiLSTM"):
        if (activation, gate) != ("Tanh", "Logistic"):
            return f"torch's LSTM has tanh and sigmoid, this one {activation} and {gate}", {}
    elif activation not in ("Tanh", "Rectlin"):
        return f"torch's RNN has tanh or relu, this one {activation}", {}
    if record.config.get("split_inputs"):
        return "its two directions read different inputs", {}
    return "", _layout(record)


def _layout(record: Record) -> Layout:
    gates, directions = _GATES[record.type], 2 if record.type.startswith("Bi") else 1
    rows, columns = record.params["W"].shape
    units, inputs = columns // gates, rows // directions - columns // gates - 1
    if columns % gates or rows % directions or inputs < 1:
        raise ValueError(f"a matrix of {rows} x {columns} for {gates} gates")
    layout: Layout = {}
    for direction in range(directions):
        # Rows: all input weights, all recurrent weights, all biases, each for both directions in turn.
        starts = (
            direction * inputs,
            directions * inputs + direction * units,
            directions * (inputs + units) + direction,
        )
        parts = dict(
            zip(("input", "recurrent", "bias"), zip(starts, (inputs, units, 1), strict=True), strict=True)
        )
        for name, recipe in LAYOUTS["neon", record.type].items():
            (part,) = sources_of({name: recipe})
            suffix = "_l0_reverse" if direction else "_l0"
            layout[f"{name}{suffix}"] = "W", _turn(name, recipe, part, _rows(*parts[part], columns))
    return layout


def _rows(start: int, count: int, columns: int) -> Callable[[Array], Array]:
    """Return a function that takes ``count`` rows as (gates * N, count)."""
    return lambda matrix: matrix[start : start + count].reshape(columns, count)


def _transform(config: Mapping[str, Any], key: str) -> str:
    """Return the class of an activation: ``"Tanh"``."""
    entry = config.get(key)
    return str(entry.get("type", "")).rpartition(".")[2] if isinstance(entry, Mapping) else "unknown"


def _same(array: Array) -> Array:
    return array


_PREPARED: dict[str, Callable[[Record], Callable[[Array], Array]]] = {
    "Convolution": _convolution,
    "Convolution_bias": _convolution,
    "Deconvolution": _convolution,
    "Linear": _linear,
    "LookupTable": _lookup_table,
}
