"""The conversion of each kind of neon layer to a torch layer: which array, reshaped how, under which name.

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

import numpy as np

from transferkit.checkpoints.neon._records import Array, Record

Layout = dict[str, tuple[str, Callable[[Array], Array]]]
_GATES = {"Recurrent": 1, "BiRNN": 1, "LSTM": 4, "BiLSTM": 4}
_LSTM_ORDER = (0, 1, 3, 2)  # neon: input, forget, output, cell; torch: input, forget, cell, output

_WHY_NOT = {
    "GRU": "neon's GRU resets the state before its recurrent weights, torch's GRU after them",
    "BiBNRNN": "torch has no recurrent layer with batch norm inside",
}


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
        make = _LAYOUTS.get(record.type)
        if make is None:
            raise NotConvertibleError(f"no torch layer for neon's {record.type or 'unnamed type'}")
        return make(record)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise NotConvertibleError(f"its parameters do not fit its description ({error})") from error


def _convolution(record: Record) -> Layout:
    kernel = filter_shape(record.config["fshape"])
    rows, _ = record.params["W"].shape
    if rows % math.prod(kernel):
        raise ValueError(f"{rows} rows for a kernel of {kernel}")

    def rearrange(weight: Array) -> Array:
        channels_last = weight.reshape(rows // math.prod(kernel), *kernel, weight.shape[1])
        return channels_last.transpose(-1, *range(channels_last.ndim - 1))

    layout: Layout = {"weight": ("W", rearrange)}
    if "weight_bias" in record.params:
        layout["bias"] = ("weight_bias", _column)
    return layout


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


def _linear(record: Record) -> Layout:
    _two_dimensional(record.params["W"])
    return {"weight": ("W", _same)}


def _bias(record: Record) -> Layout:
    return {"bias": ("W", _column)}


def _batch_norm(record: Record) -> Layout:
    names = {"weight": "gamma", "bias": "beta", "running_mean": "gmean", "running_var": "gvar"}
    return {name: (key, _column) for name, key in names.items() if record.params[key].size}


def _lookup_table(record: Record) -> Layout:
    vocabulary, width = record.config["vocab_size"], record.config["embedding_dim"]
    shape = record.params["W"].shape
    if vocabulary == width:
        raise ValueError("a square table, whose orientation differs between versions of neon")
    if shape == (width, vocabulary):
        return {"weight": ("W", lambda table: table.T)}
    if shape != (vocabulary, width):
        raise ValueError(f"a table of shape {shape} for {vocabulary} words of {width}")
    return {"weight": ("W", _same)}


def _recurrent(record: Record) -> Layout:
    reason, layout = recurrent_layout(record)
    if reason:
        raise NotConvertibleError(reason)
    return layout


def recurrent_layout(record: Record) -> tuple[str, Layout]:
    """Return the reason why a recurrent layer has no torch counterpart (empty if it has one), and its layout."""
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


def _same(array: Array) -> Array:
    return array


def _column(array: Array) -> Array:
    return array.reshape(-1)


def _two_dimensional(array: Array) -> None:
    if array.ndim != 2:
        raise ValueError(f"weights of shape {array.shape}")


_LAYOUTS: dict[str, Callable[[Record], Layout]] = {
    "Convolution": _convolution,
    "Convolution_bias": _convolution,
    "Deconvolution": _convolution,
    "Linear": _linear,
    "Bias": _bias,
    "BatchNorm": _batch_norm,
    "BatchNormAutodiff": _batch_norm,
    "LookupTable": _lookup_table,
    "Recurrent": _recurrent,
    "LSTM": _recurrent,
    "BiRNN": _recurrent,
    "BiLSTM": _recurrent,
    "GRU": _recurrent,
    "BiBNRNN": _recurrent,
}
