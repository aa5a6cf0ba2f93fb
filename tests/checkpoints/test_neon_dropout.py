"""Where the factor of a dropout layer goes, and that the network computes the same with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.test_neon_layers import container, layer, model, numbers, read
from transferkit.checkpoints import Checkpoint

RELU = {"transform": {"type": "neon.transforms.activation.Rectlin", "config": {}}}
TANH = {"transform": {"type": "neon.transforms.activation.Tanh", "config": {}}}


def linear(name: str) -> dict[str, Any]:
    return layer("Linear", name, W=numbers(2, 2))


def factors(saved: dict[str, Any], folder: Path) -> dict[str, float]:
    """What each weight was multiplied by."""
    folded, raw = read(saved, folder), read(saved, folder, fold_dropout=False)
    return {name: float(weight(folded, name) / weight(raw, name)) for name in folded.names if name != "b_only"}


def weight(checkpoint: Checkpoint, name: str) -> float:
    tensors = checkpoint[name].tensors
    return float(tensors.get("weight", tensors.get("weight_ih_l0")).flatten()[0])  # type: ignore[union-attr]


def test_the_next_weights_take_the_factor(tmp_path: Path) -> None:
    saved = model(
        linear("a"),
        layer("Dropout", "d", keep=0.25),
        layer("Activation", "r", **RELU),
        linear("b"),
        linear("c"),
    )
    assert factors(saved, tmp_path) == {"a": 1, "b": 0.25, "c": 1}


def test_two_dropouts_multiply_and_the_default_is_a_half(tmp_path: Path) -> None:
    saved = model(layer("Dropout", "d"), layer("Pooling", "p"), layer("Dropout", "e", keep=0.2), linear("a"))
    assert factors(saved, tmp_path)["a"] == pytest.approx(0.1)


@pytest.mark.parametrize("compat_mode", ["neon", "caffe"])
@pytest.mark.parametrize("kind", ["Dropout", "DropoutBinary"])
def test_caffe_mode_drops_as_torch_does(compat_mode: str, kind: str, tmp_path: Path) -> None:
    saved = model(layer(kind, "d"), linear("a"), compat_mode=compat_mode)
    assert factors(saved, tmp_path)["a"] == (1 if (kind, compat_mode) == ("Dropout", "caffe") else 0.5)


def test_a_factor_that_cannot_pass_is_told(tmp_path: Path) -> None:
    for blocking in (
        layer("Activation", "t", **TANH),
        layer("LRN", "n"),
        layer("Bias", "b_only", W=numbers(2, 1)),
    ):
        saved = model(layer("Dropout", "drop"), blocking, linear("a"))
        assert factors(saved, tmp_path)["a"] == 1
        assert "dropout at drop: no layer after it can absorb its factor" in " ".join(
            read(saved, tmp_path).notes
        )
    assert "dropout at last" in " ".join(read(model(linear("a"), layer("Dropout", "last")), tmp_path).notes)


def test_every_branch_takes_the_factor(tmp_path: Path) -> None:
    merge = container(
        "MergeSum", container("Sequential", linear("x")), container("Sequential", linear("y")), name="m"
    )
    found = factors(model(layer("Dropout", "d"), merge, linear("after")), tmp_path)
    assert found == {"m.0.x": 0.5, "m.1.y": 0.5, "after": 1}


def test_side_branches_of_a_tree_know_the_factor_at_their_node(tmp_path: Path) -> None:
    backbone = container(
        "Sequential", linear("a"), layer("Dropout", "d"), layer("BranchNode", "b"), linear("c")
    )
    saved = model()
    saved["model"] = container("Tree", backbone, container("Sequential", layer("BranchNode", "b"), linear("e")))
    assert factors(saved, tmp_path) == {"0.a": 1, "0.c": 0.5, "1.e": 0.5}


def test_batch_norm_takes_the_factor_exactly(tmp_path: Path) -> None:
    arrays = {"beta": numbers(3, 1), "gamma": numbers(3, 1), "gmean": numbers(3, 1), "gvar": numbers(3, 1) ** 2}
    checkpoint = read(model(layer("Dropout", "d", keep=0.4), layer("BatchNorm", "n", **arrays)), tmp_path)
    norm = torch.nn.BatchNorm1d(3, eps=1e-3).eval()
    norm.load_state_dict(dict(checkpoint["n"].tensors))
    x = numbers(5, 3)
    flat = {key: array[:, 0] for key, array in arrays.items()}
    wanted = (0.4 * x - flat["gmean"]) / np.sqrt(flat["gvar"] + 1e-3) * flat["gamma"] + flat["beta"]
    assert np.allclose(norm(torch.from_numpy(x)).detach(), wanted, atol=1e-5)


def test_a_recurrent_layer_takes_it_on_its_input_alone(tmp_path: Path) -> None:
    activation = {"activation": {"type": "neon.transforms.activation.Tanh", "config": {}}}
    saved = model(layer("Dropout", "d"), layer("Recurrent", "r", W=numbers(6, 2), **activation))
    folded, raw = read(saved, tmp_path)["r"].tensors, read(saved, tmp_path, fold_dropout=False)["r"].tensors
    assert torch.equal(folded["weight_ih_l0"], raw["weight_ih_l0"] * 0.5)
    assert torch.equal(folded["weight_hh_l0"], raw["weight_hh_l0"])
