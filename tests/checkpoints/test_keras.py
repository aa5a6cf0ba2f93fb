"""Keras's files: what Keras wrote is read bit for bit, under torch's names, and computes the same in torch."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.keras_twins import CHANNELS_FIRST, MAPS, TWINS
from transferkit import WeightTransfer, read_checkpoint
from transferkit.checkpoints.layouts import LAYOUTS, turned
from transferkit.errors import CheckpointError, TransferError
from transferkit.transfer import TransferReport

h5py = pytest.importorskip("h5py", reason="Keras's files need h5py")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    with zipfile.ZipFile(Path(__file__).parent / "files" / "keras.zip") as archive:
        archive.extractall(folder)
    return folder


def largest_difference(files: Path, path: Path, **options: Any) -> tuple[float, TransferReport]:
    name = path.name.partition(".")[0]
    golden = np.load(files / "golden.npz")
    model = TWINS[name]().eval()
    report = WeightTransfer(path, **options).apply(model)
    given = [torch.from_numpy(golden[key]) for key in sorted(golden) if key.startswith(f"{name}/input")]
    with torch.no_grad():
        made = model(*(each.movedim(-1, 1) if name in CHANNELS_FIRST else each for each in given))
    wanted = golden[f"{name}/output"]
    made = made.movedim(1, -1) if name in MAPS else made
    return float(np.abs(made.numpy() - wanted).max() / np.abs(wanted).max()), report


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_computes_the_same(files: Path, name: str) -> None:
    for path in (files / f"{name}.keras", files / f"{name}.h5"):
        if path.exists():
            difference, report = largest_difference(files, path)
            assert difference < 1e-6
            assert not report.missing
            assert not report.unexpected


@pytest.mark.parametrize("name", TWINS)
def test_every_value_is_the_framework_s_own(files: Path, name: str) -> None:
    with zipfile.ZipFile(files / f"{name}.keras") as archive, archive.open("model.weights.h5") as member:
        content = member.read()
    (files / f"{name}.own.h5").write_bytes(content)
    own: list[np.ndarray] = []
    with h5py.File(files / f"{name}.own.h5") as file:
        file.visititems(lambda path, node: own.append(node[()]) if hasattr(node, "shape") else None)
    checkpoint = read_checkpoint(files / f"{name}.keras")
    notes = " ".join(checkpoint.notes)
    read = torch.cat([tensor.reshape(-1) for tensor in checkpoint.state_dict().values()]).sort().values
    flat = np.sort(np.concatenate([array.reshape(-1) for array in own]))
    # Beside them are the second biases of recurrent layers, scales that Keras leaves out, and the optimizer's states.
    added = {"text": 16 + 16 + 5, "residual": 4}.get(name, 0)
    assert len(read) - added == len(flat) or "under optimizer" in notes
    assert name == "shared" or not added or set(read.tolist()) - {0.0, 1.0} == set(flat.tolist()) - {0.0, 1.0}
    assert name == "shared" or added or np.array_equal(read.numpy(), flat)


def test_both_containers_hold_the_same(files: Path) -> None:
    for path in files.glob("*.h5"):
        other = path.with_suffix(".keras")
        if other.exists() and "." not in path.stem:
            one, two = read_checkpoint(path), read_checkpoint(other)
            assert one.names == two.names
            assert [dict(layer.attributes) for layer in one] == [dict(layer.attributes) for layer in two]
            assert all(torch.equal(tensor, two.state_dict()[key]) for key, tensor in one.state_dict().items())


def test_a_layer_says_what_the_file_says_of_it(files: Path) -> None:
    checkpoint = read_checkpoint(files / "cnn.keras")
    assert checkpoint["norm1"].attributes == {"eps": 1e-3, "momentum": pytest.approx(0.01)}
    assert checkpoint["conv2"].attributes["stride"] == (2, 2)
    assert checkpoint["conv2"].attributes["padding"] == 0
    assert checkpoint["conv1"].attributes["padding"] == "same"
    assert checkpoint["fc1"].attributes == {"activation": "relu"}  # the map before it has one place
    assert read_checkpoint(files / "square.keras")["fc1"].attributes == {"flatten": (3, 3, 4)}
    assert read_checkpoint(files / "decoder.keras")["grow"].attributes == {"unflatten": (2, 3, 4)}
    assert checkpoint.metadata["keras_version"].startswith("3.")
    assert checkpoint.layers[0].layout == "torch"


def test_the_order_behind_a_flatten_is_adapted_by_name(files: Path) -> None:
    _, report = largest_difference(files, files / "square.keras")
    assert report.adapted == ("fc1.weight",)
    assert "by flatten order" in str(report)


def test_programs_and_optimizers_are_named_and_left_out(files: Path) -> None:
    notes = " ".join(read_checkpoint(files / "shared.keras").notes)
    assert "Lambda layers are programs, which are not run" in notes
    assert "under optimizer" in notes


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_weights_alone_are_known_by_their_folders(files: Path, name: str) -> None:
    path = files / f"{name}.weights.h5"
    assert largest_difference(files, path)[0] < 1e-6
    assert "no description of the model" in read_checkpoint(path).notes[0]


def test_weights_of_keras_2_alone_are_turned_by_their_targets(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "cnn.h5"
    with h5py.File(files / "cnn.h5") as whole, h5py.File(path, "w") as bare:
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", bare)
        bare.attrs["keras_version"] = "2.0.5"
        bare.attrs["layer_names"] = np.array([b"conv1", b"norm1", b"conv2", b"fc1", b"fc2"])
    checkpoint = read_checkpoint(path)
    assert checkpoint.names == ("conv1", "norm1", "conv2", "fc1", "fc2")
    assert checkpoint["conv1"].layout == "keras"
    assert largest_difference(files, path)[0] < 1e-6


def with_layer(tmp_path: Path, class_name: str, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    """Write a model of one layer as Keras 2 did."""
    model = {
        "class_name": "Sequential",
        "config": [{"class_name": class_name, "config": {"name": "it", **config}}],
    }
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(model)
        for name, array in arrays.items():
            file[f"model_weights/it/it/{name}:0"] = array
    return path


def test_what_torch_cannot_compute_keeps_its_own_names(tmp_path: Path) -> None:
    arrays = {
        "kernel": np.ones((2, 9), "f4"),
        "recurrent_kernel": np.ones((3, 9), "f4"),
        "bias": np.ones(9, "f4"),
    }
    checkpoint = read_checkpoint(with_layer(tmp_path, "GRU", {"units": 3}, arrays))
    assert sorted(checkpoint["it"].tensors) == ["bias", "kernel", "recurrent_kernel"]
    assert "reset_after=False" in checkpoint.notes[0]
    with pytest.raises(TransferError):
        WeightTransfer(checkpoint, mapping={"": "it"}).apply(torch.nn.GRU(2, 3))
    arrays = {
        "kernel": np.ones((2, 12), "f4"),
        "recurrent_kernel": np.ones((3, 12), "f4"),
        "bias": np.ones(12, "f4"),
    }
    hard = {"units": 3, "recurrent_activation": "hard_sigmoid"}
    assert "hard_sigmoid" in read_checkpoint(with_layer(tmp_path, "LSTM", hard, arrays)).notes[0]
    assert "MyLayer" in read_checkpoint(with_layer(tmp_path, "MyLayer", {}, {"thing": np.ones(3)})).notes[0]


def test_cudnn_gates_have_two_biases() -> None:
    bias = torch.arange(24.0)
    tensors = {"kernel": torch.randn(2, 12), "recurrent_kernel": torch.randn(3, 12), "bias": bias}
    made = turned(tensors, LAYOUTS["keras", "cudnn LSTM"])
    assert torch.equal(made["bias_ih_l0"], bias[:12])
    assert torch.equal(made["bias_hh_l0"], bias[12:])


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without weights"):
        read_checkpoint(with_layer(tmp_path, "Flatten", {}, {}))


def test_a_norm_is_folded_with_the_epsilon_of_its_file(files: Path) -> None:
    folded = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 6, 3, padding=1)})
    WeightTransfer(files / "cnn.keras", handlers=["fold_batch_norm"]).apply(folded)
    whole = TWINS["cnn"]().eval()
    WeightTransfer(files / "cnn.keras").apply(whole)
    image = torch.randn(1, 3, 5, 5)
    assert torch.allclose(folded["conv1"](image), whole.norm1(whole.conv1(image)), atol=1e-5)
