"""Flax's files: trees of arrays that keep their names, and are turned by the modules that they are given to."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints.flax_twins import CHANNELS_FIRST, MAPS, TWINS
from transferkit import WeightTransfer, read_checkpoint, transfer_layer
from transferkit.errors import CheckpointError, TransferError
from transferkit.layers import Layer

msgpack = pytest.importorskip("msgpack", reason="Flax's files need msgpack")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flax")
    with zipfile.ZipFile(Path(__file__).parent / "files" / "flax.zip") as archive:
        archive.extractall(folder)
    return folder


def largest_difference(files: Path, name: str, file: str, **options: str) -> float:
    golden = np.load(files / "golden.npz")
    model = TWINS[name]().eval()
    report = WeightTransfer(files / file, **options).apply(model)
    assert not report.missing and not report.unexpected
    given = torch.from_numpy(golden[f"{name}/input"])
    with torch.no_grad():
        made = model(given.movedim(-1, 1) if name in CHANNELS_FIRST else given)
    made = made.movedim(1, -1) if name in MAPS else made
    return float(np.abs(made.numpy() - golden[f"{name}/output"]).max())


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_computes_the_same(files: Path, name: str) -> None:
    assert largest_difference(files, name, f"{name}.msgpack") < 1e-5


@pytest.mark.parametrize("name", ["volume", "words", "gates", "block", "mlp"])
def test_structure_sees_the_shapes_that_the_target_would_have(files: Path, name: str) -> None:
    assert largest_difference(files, name, f"{name}.msgpack", mapping="structure") < 1e-5


def test_arrays_under_slashes_are_read_alike(files: Path) -> None:
    assert largest_difference(files, "encoder", "encoder.npz") < 1e-5
    halves, whole = (read_checkpoint(files / name).state_dict() for name in ("bfloat16.npz", "encoder.npz"))
    assert halves.keys() == whole.keys() == read_checkpoint(files / "encoder.msgpack").state_dict().keys()
    assert all(torch.equal(halves[key], tensor.bfloat16()) for key, tensor in whole.items())


def test_collections_of_one_layer_are_put_together(files: Path) -> None:
    checkpoint = read_checkpoint(files / "cnn.msgpack")
    assert sorted(checkpoint["norm1"].tensors) == ["bias", "mean", "scale", "var"]
    assert {layer.layout for layer in checkpoint} == {"flax"}


def test_a_training_state_keeps_its_step_and_names_the_optimizer(files: Path) -> None:
    checkpoint = read_checkpoint(files / "state.msgpack")
    assert sorted(checkpoint.names) == ["Dense_0", "Dense_1", "LayerNorm_0"]
    assert checkpoint.metadata == {"step": 0}
    assert "opt_state" in checkpoint.notes[0]


def test_a_kernel_with_heads_that_nothing_tells_is_not_turned() -> None:
    source = Layer(0, "mixer", "other", {"kernel": torch.zeros(8, 2, 4)}, layout="flax")
    with pytest.raises(TransferError):
        transfer_layer(nn.Linear(8, 8, bias=False), source)


def test_a_square_kernel_is_turned() -> None:
    kernel = torch.randn(4, 4)
    linear = nn.Linear(4, 4, bias=False)
    report = transfer_layer(linear, Layer(0, "fc", "other", {"kernel": kernel}, layout="flax"))
    assert torch.equal(linear.weight, kernel.T)
    assert report.adapted == ("weight",)


def packed(shape: tuple[int, ...], dtype: str, raw: bytes, code: int = 1) -> object:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, raw)))


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"params": {"a": packed((1 << 40,), "float32", b"1234")}}, "damaged"),
        ({"params": {"a": packed((-1, -1), "float32", b"1234")}}, "damaged"),
        ({"params": {"a": packed((1,), "object", b"12345678")}}, "only plain numbers"),
        ({"params": {"a": packed((1,), "float32", b"1234", code=7)}}, "not Flax's"),
        ({"params": {}}, "no arrays"),
        ({"params": {"a.b": packed((1,), "int8", b"1"), "a_b": packed((1,), "int8", b"1")}}, "two arrays"),
        ({"params": {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {}}}}, "damaged"),
    ],
)
def test_what_no_file_of_flax_holds_is_refused(tmp_path: Path, tree: object, words: str) -> None:
    path = tmp_path / "file.msgpack"
    path.write_bytes(msgpack.packb(tree))
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path)


def test_deep_and_doubled_groups_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.msgpack"
    path.write_bytes(b"\x81\xa6params" + b"\x81\xa1a" * 100_000 + b"\x01")
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    path.write_bytes(b"\x82\xa6params\x01\xa6params\x02")
    with pytest.raises(CheckpointError, match="twice"):
        read_checkpoint(path)


def test_a_divided_array_is_one(tmp_path: Path) -> None:
    array = np.arange(6, dtype="f4")
    chunks = {str(n): packed((3,), "float32", array[3 * n : 3 * n + 3].tobytes()) for n in (0, 1)}
    tree = {"params": {"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2, "1": 3}, "chunks": chunks}}}
    path = tmp_path / "file.msgpack"
    path.write_bytes(msgpack.packb(tree))
    assert torch.equal(read_checkpoint(path).state_dict()["a"], torch.arange(6.0).reshape(2, 3))


def test_another_handler_comes_after_the_layout() -> None:
    kernel = torch.randn(3, 3, 3, 8)
    conv = nn.Conv2d(1, 8, 3, bias=False)
    source = Layer(0, "conv", "other", {"kernel": kernel}, layout="flax")
    report = transfer_layer(conv, source, handlers=["input_channels"])
    assert torch.allclose(conv.weight[:, 0], kernel.sum(2).permute(2, 0, 1))
    assert "by flax layout, then input_channels" in str(report)


def test_a_folder_of_orbax_is_shown_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="StandardCheckpointer"):
        read_checkpoint(tmp_path)
