"""Every kind of neon layer against a slow loop of neon's own definition."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints.mutated_files import gates, neon_first_version
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import CheckpointError

DICE = np.random.default_rng(0)
STEPS, BATCH = 5, 2


def numbers(*shape: int) -> np.ndarray:
    return DICE.normal(size=shape).astype("f4")


def layer(kind: str, name: str = "", states: Any = None, **rest: Any) -> dict[str, Any]:
    params = {key: value for key, value in rest.items() if isinstance(value, np.ndarray)}
    config = {key: value for key, value in rest.items() if key not in params}
    made: dict[str, Any] = {
        "type": f"neon.layers.layer.{kind}",
        "config": {**({"name": name} if name else {}), **config},
    }
    if params:
        made["params"] = params
    if states is not None:
        made["states"] = states
    return made


def container(kind: str, *layers: dict[str, Any], name: str = "") -> dict[str, Any]:
    config = {"layers": list(layers), **({"name": name} if name else {})}
    return {"type": f"neon.layers.container.{kind}", "container": True, "config": config}


def model(*layers: dict[str, Any], compat_mode: str = "neon", **rest: Any) -> dict[str, Any]:
    return {
        "neon_version": "2.6.0",
        "backend": {"compat_mode": compat_mode},
        "model": container("Sequential", *layers),
        **rest,
    }


def read(saved: dict[str, Any], folder: Path, **options: Any) -> Checkpoint:
    path = folder / "model.prm"
    path.write_bytes(pickle.dumps(saved, 2))
    return read_checkpoint(path, **options)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("fshape", [(2, 3, 4), [2, 3, 4], {"R": 2, "S": 3, "K": 4}])
def test_convolution_with_a_fused_bias(fshape: Any, tmp_path: Path) -> None:
    weight, bias, pixels = numbers(3 * 2 * 3, 4), numbers(4, 1), numbers(3, 5, 6)
    wanted = np.zeros((4, 4, 4), "f4") + bias[:, :, None]
    for k in range(4):
        for p in range(4):
            for q in range(4):
                patch = pixels[:, p : p + 2, q : q + 3]
                wanted[k, p, q] += (patch.reshape(-1) * weight[:, k]).sum()
    checkpoint = read(
        model(layer("Convolution_bias", "c", fshape=fshape, W=weight, weight_bias=bias)), tmp_path
    )
    convolution = nn.Conv2d(3, 4, (2, 3))
    convolution.load_state_dict(dict(checkpoint["c"].tensors))
    assert np.allclose(convolution(torch.from_numpy(pixels)).detach(), wanted, atol=1e-5)


def test_convolution_in_three_dimensions(tmp_path: Path) -> None:
    checkpoint = read(model(layer("Convolution", "c", fshape=(2, 3, 3, 4), W=numbers(5 * 2 * 9, 4))), tmp_path)
    assert checkpoint["c"].shapes == {"weight": (4, 5, 2, 3, 3)}


def test_deconvolution_is_the_convolution_backwards(tmp_path: Path) -> None:
    weight, bias, pixels = numbers(2 * 3 * 3, 4), numbers(2, 1), numbers(4, 3, 3)
    wanted = np.zeros((2, 7, 7), "f4") + bias[:, :, None]
    filters = weight.reshape(2, 3, 3, 4)
    for k in range(4):
        for p in range(3):
            for q in range(3):
                wanted[:, 2 * p : 2 * p + 3, 2 * q : 2 * q + 3] += filters[..., k] * pixels[k, p, q]
    saved = model(layer("Deconvolution", "d", fshape=(3, 3, 2), strides=2, W=weight), layer("Bias", W=bias))
    deconvolution = nn.ConvTranspose2d(4, 2, 3, stride=2)
    deconvolution.load_state_dict(dict(read(saved, tmp_path)["d"].tensors))
    assert np.allclose(deconvolution(torch.from_numpy(pixels)).detach(), wanted, atol=1e-5)


def run_rnn(inputs: np.ndarray, matrix: np.ndarray, gate_count: int, *, act: Any = np.tanh) -> np.ndarray:
    """neon's recurrence over (steps, batch, features), from one matrix of input, recurrent and bias rows."""
    units = matrix.shape[1] // gate_count
    width = inputs.shape[-1]
    w_input = matrix[:width].reshape(gate_count * units, width)
    w_recur = matrix[width:-1].reshape(gate_count * units, units)
    bias = matrix[-1:].reshape(gate_count * units)
    h = c = np.zeros((inputs.shape[1], units), "f4")
    outputs = []
    for x in inputs:
        z = x @ w_input.T + h @ w_recur.T + bias
        if gate_count == 1:
            h = act(z)
        else:
            i, f, o, g = (z[:, n * units : (n + 1) * units] for n in range(4))
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs)


@pytest.mark.parametrize(("kind", "gate_count"), [("Recurrent", 1), ("LSTM", 4)])
def test_recurrent_layers(kind: str, gate_count: int, tmp_path: Path) -> None:
    matrix, inputs = numbers(3 + 4 + 1, gate_count * 4), numbers(STEPS, BATCH, 3)
    checkpoint = read(model(layer(kind, "r", W=matrix, **gates("Tanh", "Logistic"))), tmp_path)
    module = (nn.RNN if kind == "Recurrent" else nn.LSTM)(3, 4)
    module.load_state_dict(dict(checkpoint["r"].tensors))
    assert checkpoint["r"].kind == "recurrent"
    outputs = module(torch.from_numpy(inputs))[0].detach()
    assert np.allclose(outputs, run_rnn(inputs, matrix, gate_count), atol=1e-5)


@pytest.mark.parametrize(("kind", "gate_count"), [("BiRNN", 1), ("BiLSTM", 4)])
def test_bidirectional_layers(kind: str, gate_count: int, tmp_path: Path) -> None:
    forward, backward = numbers(8, gate_count * 4), numbers(8, gate_count * 4)
    parts = [
        part for rows in (slice(0, 3), slice(3, 7), slice(7, 8)) for part in (forward[rows], backward[rows])
    ]
    inputs = numbers(STEPS, BATCH, 3)
    wanted = np.concatenate(
        [run_rnn(inputs, forward, gate_count), run_rnn(inputs[::-1], backward, gate_count)[::-1]], axis=-1
    )
    saved = model(layer(kind, "r", W=np.concatenate(parts), reset_cells=True, **gates("Tanh", "Logistic")))
    module = (nn.RNN if kind == "BiRNN" else nn.LSTM)(3, 4, bidirectional=True)
    module.load_state_dict(dict(read(saved, tmp_path)["r"].tensors))
    assert np.allclose(module(torch.from_numpy(inputs))[0].detach(), wanted, atol=1e-5)


def test_relu_recurrence(tmp_path: Path) -> None:
    matrix, inputs = numbers(8, 4) / 4, numbers(STEPS, BATCH, 3)
    checkpoint = read(model(layer("Recurrent", "r", W=matrix, **gates("Rectlin", ""))), tmp_path)
    module = nn.RNN(3, 4, nonlinearity="relu")
    module.load_state_dict(dict(checkpoint["r"].tensors))
    wanted = run_rnn(inputs, matrix, 1, act=lambda x: np.maximum(x, 0))
    assert np.allclose(module(torch.from_numpy(inputs))[0].detach(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "gate_names", "reason"),
    [
        ("GRU", ("Tanh", "Logistic"), "resets the state before its recurrent weights"),
        ("LSTM", ("Rectlin", "Logistic"), "torch's LSTM has tanh and sigmoid, this one Rectlin and Logistic"),
        ("BinaryLinear", ("", ""), "no torch layer for neon's BinaryLinear"),
    ],
)
def test_what_has_no_counterpart_is_listed(
    kind: str, gate_names: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    strange = layer(kind, "odd", W=numbers(8, 12), **gates(*gate_names))
    checkpoint = read(model(layer("Linear", "fc", W=numbers(2, 3)), strange), tmp_path)
    assert checkpoint.names == ("fc",)
    assert "odd" in checkpoint.notes[0] and reason in checkpoint.notes[0]
    with pytest.raises(CheckpointError, match="no layer of this neon model has a counterpart"):
        read(model(strange), tmp_path)


def test_lookup_tables_of_both_orientations(tmp_path: Path) -> None:
    for shape in ((7, 3), (3, 7)):
        table = layer("LookupTable", "words", vocab_size=7, embedding_dim=3, W=numbers(*shape))
        assert read(model(table), tmp_path)["words"].shapes == {"weight": (7, 3)}


def test_containers_give_dotted_names_and_neons_own_count(tmp_path: Path) -> None:
    linear = {"W": numbers(2, 2)}
    branches = container(
        "MergeSum",
        container("Sequential", layer("Linear", "fc", **linear), layer("Activation", "act"), name="left"),
        container("Sequential", layer("SkipNode", "skip"), layer("Linear", "fc", **linear), name="right"),
        name="merge",
    )
    checkpoint = read(model(layer("Pooling", "pool"), branches, layer("Linear", "fc", **linear)), tmp_path)
    assert checkpoint.names == ("merge.left.fc", "merge.right.fc", "fc")
    assert [found.raw_index for found in checkpoint] == [1, 4, 5]


def test_trees_and_repeated_or_missing_names(tmp_path: Path) -> None:
    linear = {"W": numbers(2, 2)}
    backbone = container(
        "Sequential", layer("Linear", **linear), layer("BranchNode", "b"), layer("Linear", **linear)
    )
    side = container("Sequential", layer("BranchNode", "b"), layer("Linear", "aux.fc", **linear))
    saved = model()
    saved["model"] = container("Tree", backbone, side)
    assert read(saved, tmp_path).names == ("0.Linear_0", "0.Linear_2", "1.aux_fc")
    twice = read(model(layer("Linear", "fc", **linear), layer("Linear", "fc", **linear)), tmp_path)
    assert twice.names == ("fc_0", "fc_1")
    clash = read(model(*(layer("Linear", name, **linear) for name in ("fc", "fc", "fc_0"))), tmp_path)
    assert len(set(clash.names)) == 3


def test_the_first_versions_layout_is_told_from_its_shapes(shared: Path, tmp_path: Path) -> None:
    modern = pickle.loads((shared / "neon/mini_alexnet_1.2.2.prm").read_bytes(), encoding="latin1")
    layers = [entry for entry in modern["model"]["config"]["layers"] if "params" in entry]
    first = [
        {"params": {"W": entry["params"]["W"], "name": entry["config"]["name"]}, "states": []}
        for entry in layers
    ]
    found = read({"layer_params_states": first, "epoch_index": 4}, tmp_path)
    wanted = read_checkpoint(shared / "neon/mini_alexnet_1.2.2.prm", fold_dropout=False)
    assert found.names == wanted.names
    for a, b in zip(found, wanted, strict=True):
        assert all(torch.equal(a.tensors[key], b.tensors[key]) for key in b.tensors)
    assert "inferred from the shapes" in found.notes[0]


def test_the_first_versions_names_repeat_and_its_arrays_are_bare(tmp_path: Path) -> None:
    saved = neon_first_version()
    for entry in saved["layer_params_states"]:
        entry["params"] = entry["params"]["W"]
    checkpoint = read(saved, tmp_path)
    assert [(found.name, found.kind) for found in checkpoint] == [("Convolution", "conv"), ("Linear", "linear")]


def test_what_the_first_versions_shapes_leave_open_is_not_guessed(tmp_path: Path) -> None:
    square = [
        {"params": {"W": numbers(9, 9), "name": "layer"}},
        {"params": {"W": numbers(9, 1), "name": "bias"}},
    ]
    named = [{"params": {"W": numbers(9, 9), "name": "fc"}}, {"params": {"W": numbers(9, 1), "name": "bias"}}]
    found = read({"layer_params_states": [*square, *named]}, tmp_path)
    assert found.names == ("fc",)
    assert "not convertible" in found.notes[0]
