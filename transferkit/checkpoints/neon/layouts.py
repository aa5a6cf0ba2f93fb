"""How each kind of neon layer becomes a torch layer: which array, reshaped how, under which name.

neon keeps features first and the batch last, so a convolution's weights are a matrix of (C*T*R*S, K) with the
output channels K last, where torch has (K, C, T, R, S). Every conversion here is a rearrangement, so it serves
for a weight and for the optimizer state of that weight alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transferkit.checkpoints.neon.records import Array, Record
from transferkit.checkpoints.neon.recurrent import recurrent_layout

Layout = dict[str, tuple[str, Callable[[Array], Array]]]


class NotConvertibleError(Exception):
    """A layer that has no exact counterpart in torch; the message says why."""


def layout_of(record: Record) -> Layout:
    """Return, for each torch tensor of a layer, the neon parameter it comes from and how.

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
