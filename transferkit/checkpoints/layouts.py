"""Where other frameworks' tensors go in torch's layers: one table of data, and what turns a tensor by it.

A reader of a format that tells what each layer is (Keras, neon) turns its tensors as it reads them. Of a format that
does not (trees of Flax or JAX, Keras weights without their model), the tensors stay as they are, and the plan of a
transfer turns them by the class of the target's module; never by shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["KINDS", "LAYOUTS", "WHY_NOT", "row_for", "sources_of", "turned"]

Row = Mapping[str, str]

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_KERAS_RECURRENT = {"weight_ih_l0": "kernel:linear", "weight_hh_l0": "recurrent_kernel:linear"}
_KERAS_GRU = {
    "weight_ih_l0": "kernel:linear,reset first",
    "weight_hh_l0": "recurrent_kernel:linear,reset first",
}
_ONE_BIAS = {"bias_ih_l0": "bias", "bias_hh_l0": "bias:zeros"}
_IN_PROJECTIONS = {
    "in_proj_weight": "query.kernel:from heads+key.kernel:from heads+value.kernel:from heads",
    "in_proj_bias": "query.bias:flat+key.bias:flat+value.bias:flat",
}
_NEON_CONVOLUTION = {"weight": "W:linear", "bias": "weight_bias:flat"}  # W as (in, *kernel, out)
_NEON_NORM = {
    "weight": "gamma:flat",
    "bias": "beta:flat",
    "running_mean": "gmean:flat",
    "running_var": "gvar:flat",
}
_NEON_RECURRENT = {
    "weight_ih": "input",
    "weight_hh": "recurrent",
    "bias_ih": "bias:flat",
    "bias_hh": "bias:flat,zeros",
}
_NEON_LSTM = {
    "weight_ih": "input:cell third",
    "weight_hh": "recurrent:cell third",
    "bias_ih": "bias:cell third,flat",
    "bias_hh": "bias:flat,zeros",
}

LAYOUTS: Mapping[tuple[str, str], Row] = {
    ("keras", "Linear"): {"weight": "kernel:linear", "bias": "bias"},
    ("keras", "_ConvNd"): {"weight": "kernel:conv|depthwise_kernel:depthwise", "bias": "bias"},
    ("keras", "_ConvTransposeNd"): {"weight": "kernel:conv", "bias": "bias"},
    ("keras", "depthwise"): {"weight": "kernel:depthwise|depthwise_kernel:depthwise", "bias": "bias"},
    ("keras", "separable"): {
        "depthwise.weight": "depthwise_kernel:depthwise",
        "pointwise.weight": "pointwise_kernel:conv",
        "pointwise.bias": "bias",
    },
    ("keras", "_NormBase"): _NORM,
    ("keras", "LayerNorm"): {"weight": "gamma", "bias": "beta"},
    ("keras", "GroupNorm"): {"weight": "gamma", "bias": "beta"},
    ("keras", "RMSNorm"): {"weight": "scale"},
    ("keras", "Embedding"): {"weight": "embeddings"},
    ("keras", "PReLU"): {"weight": "alpha:flat"},
    ("keras", "RNN"): _KERAS_RECURRENT | _ONE_BIAS,
    ("keras", "LSTM"): _KERAS_RECURRENT | _ONE_BIAS,  # the gates in torch's order
    ("keras", "GRU"): _KERAS_GRU
    | {"bias_ih_l0": "bias:first,reset first", "bias_hh_l0": "bias:second,reset first"},
    ("keras", "cudnn LSTM"): _KERAS_RECURRENT
    | {"bias_ih_l0": "bias:halves,first", "bias_hh_l0": "bias:halves,second"},
    ("keras", "cudnn GRU"): _KERAS_GRU
    | {"bias_ih_l0": "bias:halves,first,reset first", "bias_hh_l0": "bias:halves,second,reset first"},
    ("keras", "MultiheadAttention"): _IN_PROJECTIONS
    | {"out_proj.weight": "output.kernel:to heads", "out_proj.bias": "output.bias"},
    ("keras", "attention"): {  # where the projections of the inputs do not fit into one matrix
        **{f"{part}.weight": f"{part}.kernel:from heads" for part in ("query", "key", "value")},
        **{f"{part}.bias": f"{part}.bias:flat" for part in ("query", "key", "value")},
        "output.weight": "output.kernel:to heads",
        "output.bias": "output.bias",
    },
    ("flax", "Linear"): {"weight": "kernel:linear", "bias": "bias"},
    ("flax", "from heads"): {"weight": "kernel:from heads", "bias": "bias:flat"},  # query, key, value
    ("flax", "to heads"): {"weight": "kernel:to heads", "bias": "bias"},  # out
    ("flax", "_ConvNd"): {"weight": "kernel:conv", "bias": "bias"},
    ("flax", "_ConvTransposeNd"): {"weight": "kernel:inputs first,mirrored", "bias": "bias"},
    ("flax", "norm"): {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
    ("flax", "Embedding"): {"weight": "embedding"},
    ("flax", "PReLU"): {"weight": "negative_slope:flat"},
    ("flax", "MultiheadAttention"): _IN_PROJECTIONS,
    ("flax", "LSTM"): {
        "weight_ih_l0": "ii.kernel:linear+if.kernel:linear+ig.kernel:linear+io.kernel:linear",
        "weight_hh_l0": "hi.kernel:linear+hf.kernel:linear+hg.kernel:linear+ho.kernel:linear",
        "bias_ih_l0": "hi.bias:zeros+hf.bias:zeros+hg.bias:zeros+ho.bias:zeros",
        "bias_hh_l0": "hi.bias+hf.bias+hg.bias+ho.bias",
    },
    ("flax", "GRU"): {
        "weight_ih_l0": "ir.kernel:linear+iz.kernel:linear+in.kernel:linear",
        "weight_hh_l0": "hr.kernel:linear+hz.kernel:linear+hn.kernel:linear",
        "bias_ih_l0": "ir.bias+iz.bias+in.bias",
        "bias_hh_l0": "ir.bias:zeros+iz.bias:zeros+hn.bias",
    },
    ("tensorflow", "Linear"): {"weight": "kernel:linear|weights:linear", "bias": "bias|biases"},
    ("tensorflow", "_ConvNd"): {
        "weight": "kernel:conv|weights:conv|depthwise_kernel:depthwise|depthwise_weights:depthwise",
        "bias": "bias|biases",
    },
    ("tensorflow", "_ConvTransposeNd"): {"weight": "kernel:conv|weights:conv", "bias": "bias|biases"},
    ("tensorflow", "_NormBase"): _NORM,
    ("tensorflow", "LayerNorm"): {"weight": "gamma", "bias": "beta"},
    ("tensorflow", "Embedding"): {"weight": "embeddings"},
    ("neon", "Convolution"): _NEON_CONVOLUTION,
    ("neon", "Convolution_bias"): _NEON_CONVOLUTION,
    ("neon", "Deconvolution"): _NEON_CONVOLUTION,
    ("neon", "Linear"): {"weight": "W"},
    ("neon", "Bias"): {"bias": "W:flat"},
    ("neon", "BatchNorm"): _NEON_NORM,
    ("neon", "BatchNormAutodiff"): _NEON_NORM,
    ("neon", "LookupTable"): {"weight": "W"},
    ("neon", "Recurrent"): _NEON_RECURRENT,  # the parts of its matrix, gate by gate
    ("neon", "BiRNN"): _NEON_RECURRENT,
    ("neon", "LSTM"): _NEON_LSTM,
    ("neon", "BiLSTM"): _NEON_LSTM,
}
"""By format and kind: torch's tensor, and what it is made of: ``"theirs:turn,turn"``.

Several that are joined stand with ``+`` between them, alternatives with ``|``. A kind is a class of torch's, or a
word where torch has no such layer. In Keras's rows, first mentions stand in the order in which its files number the
variables of a layer.
"""

KINDS: Mapping[tuple[str, str], str] = {
    ("keras", "Dense"): "Linear",
    **{("keras", f"Conv{n}D"): "_ConvNd" for n in (1, 2, 3)},
    **{("keras", f"Convolution{n}D"): "_ConvNd" for n in (1, 2, 3)},
    **{("keras", f"Conv{n}DTranspose"): "_ConvTransposeNd" for n in (1, 2, 3)},
    **{("keras", f"DepthwiseConv{n}D"): "depthwise" for n in (1, 2)},
    **{("keras", f"SeparableConv{n}D"): "separable" for n in (1, 2)},
    ("keras", "BatchNormalization"): "_NormBase",
    ("keras", "BatchNormalizationV1"): "_NormBase",
    ("keras", "SyncBatchNormalization"): "_NormBase",
    ("keras", "LayerNormalization"): "LayerNorm",
    ("keras", "GroupNormalization"): "GroupNorm",
    ("keras", "RMSNormalization"): "RMSNorm",
    ("keras", "Embedding"): "Embedding",
    ("keras", "PReLU"): "PReLU",
    ("keras", "SimpleRNN"): "RNN",
    ("keras", "LSTM"): "LSTM",
    ("keras", "GRU"): "GRU",
    ("keras", "CuDNNLSTM"): "cudnn LSTM",
    ("keras", "CuDNNGRU"): "cudnn GRU",
    ("keras", "MultiHeadAttention"): "MultiheadAttention",
}
"""By format and what it calls a layer, where it tells: the kind of the table."""

WHY_NOT: Mapping[tuple[str, str], str] = {
    ("neon", "GRU"): "neon's GRU resets the state before its recurrent weights, torch's GRU after them",
    ("neon", "BiBNRNN"): "torch has no recurrent layer with batch norm inside",
    (
        "keras",
        "GRU",
    ): "with reset_after=False it resets the state before its recurrent weights, torch's GRU after them",
}
"""Layers without an exact counterpart in torch, by format and what it calls them, and why."""


def row_for(format: str, *kinds: str) -> Row | None:
    """Return the row of the first of several kinds that has one.

    Example:
        >>> row_for("flax", "Conv2d", "_ConvNd")
        {'weight': 'kernel:conv', 'bias': 'bias'}
    """
    return next((LAYOUTS[format, kind] for kind in kinds if (format, kind) in LAYOUTS), None)


def sources_of(row: Row, *, alternatives: bool = False) -> tuple[str, ...]:
    """Return the names that a row reads in order of their first mention, of alternatives the first or all.

    Example:
        >>> sources_of(LAYOUTS["keras", "_NormBase"])
        ('gamma', 'beta', 'moving_mean', 'moving_variance')
    """
    recipes = [recipe if alternatives else recipe.partition("|")[0] for recipe in row.values()]
    parts = [part for recipe in recipes for part in recipe.replace("|", "+").split("+")]
    return tuple(dict.fromkeys(part.partition(":")[0] for part in parts))


def turned(tensors: Mapping[str, Tensor], row: Row) -> dict[str, Tensor]:
    """Return a layer's tensors under torch's names, with torch's axes and order of gates.

    Args:
        tensors: The layer's tensors under the names of its format.
        row: A row of the table.

    Returns:
        What the row can make of them: views of the same memory, or the same object where nothing is to be turned.

    Example:
        >>> made = turned({"kernel": torch.zeros(3, 5, 4, 8), "bias": torch.zeros(8)}, LAYOUTS["keras", "_ConvNd"])
        >>> made["weight"].shape
        torch.Size([8, 4, 3, 5])
    """
    made = {}
    for name, recipe in row.items():
        for alternative in recipe.split("|"):
            parts = [part.partition(":")[::2] for part in alternative.split("+")]
            if all(theirs in tensors for theirs, _ in parts):
                joined = [_turned(tensors[theirs], turns) for theirs, turns in parts]
                made[name] = joined[0] if len(joined) == 1 else torch.cat(joined)
                break
    return made


def _turned(tensor: Tensor, turns: str) -> Tensor:
    for turn in filter(None, turns.split(",")):
        tensor = _TURNS[turn](tensor)
    return tensor


def _gates(*order: int) -> Callable[[Tensor], Tensor]:
    """Return a function that puts the gates of the first axis into another order."""

    def reordered(tensor: Tensor) -> Tensor:
        gates = tensor.chunk(len(order))
        return torch.cat([gates[place] for place in order])

    return reordered


_TURNS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda tensor: tensor.reshape(-1),
    "zeros": torch.zeros_like,
    "linear": lambda tensor: tensor.movedim(-1, 0),  # the outputs stand last
    "conv": lambda tensor: tensor.permute(-1, -2, *range(tensor.ndim - 2)),  # (*kernel, in, out)
    "inputs first": lambda tensor: tensor.permute(-2, -1, *range(tensor.ndim - 2)),
    "mirrored": lambda tensor: tensor.flip(list(range(2, tensor.ndim))),
    "depthwise": lambda tensor: tensor.permute(-2, -1, *range(tensor.ndim - 2)).flatten(0, 1).unsqueeze(1),
    "from heads": lambda tensor: tensor.flatten(1).movedim(-1, 0),  # (in, heads, width)
    "to heads": lambda tensor: tensor.flatten(0, -2).movedim(-1, 0),  # (heads, width, out)
    "halves": lambda tensor: tensor.reshape(2, -1),
    "first": lambda tensor: tensor[0],
    "second": lambda tensor: tensor[1],
    "reset first": _gates(1, 0, 2),  # Keras: update, reset, new; torch: reset, update, new
    "cell third": _gates(0, 1, 3, 2),  # neon: input, forget, output, cell; torch: input, forget, cell, output
}
