from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import ArgumentError, CheckpointError, LayerNotFoundError


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


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_open_files_are_read_into_memory(tmp_path: Path, suffix: str) -> None:
    state, path = network().state_dict(), tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    elif suffix == ".npz":
        numpy.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    else:
        save_file(state, path)
    for opened in (io.BytesIO(path.read_bytes()), path.open("rb")):
        with opened as file:
            checkpoint = read_checkpoint(file)
        assert all(torch.equal(checkpoint.state_dict()[key], state[key]) for key in state)
        assert checkpoint.source is None and checkpoint.sha256 is None
        assert repr(checkpoint).startswith("Checkpoint(an open file, ")
    with pytest.raises(CheckpointError, match="^the open file: "):
        read_checkpoint(io.BytesIO(b"no model"))
    with path.open(encoding="latin-1") as text, pytest.raises(ArgumentError, match="opened in binary mode"):
        read_checkpoint(text)


def test_a_url_is_not_fetched_and_the_way_is_shown() -> None:
    url = "https://download.example.org/models/resnet18-f37072fd.pth"
    with pytest.raises(CheckpointError, match="load_state_dict_from_url") as refused:
        read_checkpoint(url)
    assert url in str(refused.value)
