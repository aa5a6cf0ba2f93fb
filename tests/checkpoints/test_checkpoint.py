from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import LayerNotFoundError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_layers_are_found_by_index_name_and_slice() -> None:
    checkpoint = Checkpoint.from_state_dict(network().state_dict())
    assert checkpoint.names == ("0", "1", "3")
    assert checkpoint[2] is checkpoint["3"] is checkpoint[-1] is checkpoint[1:][1]
    assert [layer.kind for layer in checkpoint] == ["conv", "norm", "linear"]
    assert "3" in checkpoint and "4" not in checkpoint and checkpoint[0] in checkpoint
    assert checkpoint.index(checkpoint["3"]) == 2 and checkpoint.count(checkpoint[0]) == 1
    assert list(reversed(checkpoint)) == list(checkpoint)[::-1]


def test_a_missing_layer_is_answered_with_the_nearest_names() -> None:
    checkpoint = Checkpoint.from_state_dict(
        {"features.0.weight": torch.zeros(1, 1), "head.weight": torch.zeros(1)}
    )
    with pytest.raises(LayerNotFoundError, match=r"no layer 'featurs\.0' .* did you mean 'features\.0'"):
        checkpoint["featurs.0"]
    with pytest.raises(LayerNotFoundError, match="it has layers 0 to 1"):
        checkpoint[2]


def test_a_parametrized_layer_is_explained() -> None:
    linear = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    checkpoint = Checkpoint.from_state_dict(linear.state_dict())
    assert checkpoint.names == ("0",)
    assert "stored in parts" in checkpoint.notes[0] and "0 (parametrization)" in checkpoint.notes[0]


def test_model_and_its_state_dict_have_the_same_layers() -> None:
    model = network()
    model.register_buffer("scratch", torch.zeros(3), persistent=False)
    live, saved = Checkpoint.from_model(model), Checkpoint.from_state_dict(model.state_dict())
    assert [(a.index, a.name, a.kind, a.shapes) for a in live] == [
        (a.index, a.name, a.kind, a.shapes) for a in saved
    ]
    assert live["0"].tensors["weight"] is model[0].weight


def test_state_dict_round_trip_is_exact() -> None:
    state_dict = network().state_dict()
    again = Checkpoint.from_state_dict(state_dict).state_dict()
    assert list(again) == list(state_dict)
    assert all(torch.equal(again[key], state_dict[key]) for key in again)


def test_the_digest_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(network().state_dict(), path)
    assert read_checkpoint(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Checkpoint.from_model(network()).sha256 is None


def test_tied_weights_are_known_and_stay_tied_on_another_device() -> None:
    weight = torch.ones(3, 2)
    checkpoint = Checkpoint.from_state_dict(
        {"embed.weight": weight, "norm.weight": torch.ones(2), "head.weight": weight}
    )
    assert checkpoint.shared == (("embed.weight", "head.weight"),)
    moved = checkpoint.to("cpu")
    assert moved.shared == checkpoint.shared
    assert all(tensor.is_meta for tensor in checkpoint.to("meta").state_dict().values())


def test_the_real_weights_are_read(shared: Path) -> None:
    checkpoint = read_checkpoint(shared / "weights/alexnet_features.pth")
    assert checkpoint.names == ("features.0", "features.3", "features.6", "features.8", "features.10")
    assert checkpoint["features.0"].shapes == {"weight": (64, 3, 11, 11), "bias": (64,)}
    assert checkpoint.format == "torch"
