"""neon's recurrent layers as torch's, where both compute the same.

neon keeps one matrix for all of a layer: the rows of the input weights, those of the recurrent weights, one row
of biases. Each part is read as (gates * N, inputs) row by row, N being the number of units. Of the two biases
that torch has, neon's takes the first and the second is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transferkit.checkpoints.neon.records import Array, Record

Layout = dict[str, tuple[str, Callable[[Array], Array]]]

_GATES = {"Recurrent": 1, "BiRNN": 1, "LSTM": 4, "BiLSTM": 4}
_LSTM_ORDER = (0, 1, 3, 2)  # neon: input, forget, output, cell; torch: input, forget, cell, output

_WHY_NOT = {
    "GRU": "neon's GRU resets the state before its recurrent weights, torch's GRU after them",
    "BiBNRNN": "torch has no recurrent layer with batch norm inside",
}


def recurrent_layout(record: Record) -> tuple[str, Layout]:
    """Return why a recurrent layer has no counterpart, or an empty string and its layout."""
    if record.type in _WHY_NOT:
        return _WHY_NOT[record.type], {}
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
        suffix = "_l0_reverse" if direction else "_l0"
        layout[f"weight_ih{suffix}"] = ("W", _part(starts[0], inputs, gates))
        layout[f"weight_hh{suffix}"] = ("W", _part(starts[1], units, gates))
        layout[f"bias_ih{suffix}"] = ("W", _part(starts[2], 1, gates, flat=True))
        layout[f"bias_hh{suffix}"] = ("W", lambda matrix: np.zeros(matrix.shape[1], matrix.dtype))
    return layout


def _part(start: int, count: int, gates: int, *, flat: bool = False) -> Callable[[Array], Array]:
    """Return a function that takes ``count`` rows as (gates * N, count), gates in torch's order."""

    def take(matrix: Array) -> Array:
        part = matrix[start : start + count].reshape(gates, -1, count)
        ordered = part[list(_LSTM_ORDER)] if gates == 4 else part
        return ordered.reshape(-1) if flat else ordered.reshape(-1, count)

    return take


def _transform(config: Mapping[str, Any], key: str) -> str:
    """Return the class of an activation: ``"Tanh"``."""
    entry = config.get(key)
    return str(entry.get("type", "")).rpartition(".")[2] if isinstance(entry, Mapping) else "unknown"
