"""TensorFlow's checkpoints: variables as TensorFlow wrote them, and indexes that lie."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.files.make_tensorflow import numbers
from tests.checkpoints.protobufs import bundle, message, table
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import CheckpointError
from transferkit.layers import Layer
from transferkit.transfer import transfer_layer

FILES = Path(__file__).with_name("files")


def written(folder: Path, arrays: Mapping[str, Any], name: str = "model", **changes: Any) -> Path:
    index, data = bundle(arrays, **changes)
    (folder / f"{name}.data-00000-of-00001").write_bytes(data)
    path = folder / f"{name}.index"
    path.write_bytes(index)
    return path


def check(checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    assert set(checkpoint.state_dict()) == set(names)
    for key, tensor in checkpoint.state_dict().items():
        expected = torch.from_numpy(numbers(names[key], tuple(tensor.shape)))
        assert torch.equal(tensor, expected.to(tensor.dtype)), key
    assert {layer.layout for layer in checkpoint} == {"tensorflow"} and not any(
        layer.ordered for layer in checkpoint
    )


def test_variables_by_name_are_read_also_one_in_parts() -> None:
    checkpoint = read_checkpoint(FILES / "named.index")
    names = ("net/conv/weights", "net/conv/biases", "part")
    check(checkpoint, {name.replace("/", "."): name for name in names})
    assert checkpoint.metadata == {"global_step": 7}
    assert [path.name for path in checkpoint.files] == ["named.index", "named.data-00000-of-00001"]


def test_what_belongs_to_a_variable_is_read_when_it_is_asked_for() -> None:
    assert any(
        "key='ExponentialMovingAverage' (2)" in note for note in read_checkpoint(FILES / "named.index").notes
    )
    averages = read_checkpoint(FILES / "named.index", key="ExponentialMovingAverage")
    assert set(averages.state_dict()) == {"net.conv.weights", "net.conv.biases"}
    with pytest.raises(CheckpointError, match="did you mean 'Adam'"):
        read_checkpoint(FILES / "named.index", key="adam")


def test_variables_of_objects_have_their_own_names_and_no_optimizer() -> None:
    checkpoint = read_checkpoint(FILES / "objects.data-00000-of-00001")
    names = {
        f"net.{name}": f"net/{name.replace('.', '/')}" for name in ("conv.kernel", "conv.bias", "dense.kernel")
    }
    check(checkpoint, names | {"net.dense.bias": "net/dense/bias", "half": "half"})
    assert checkpoint["" if "" in checkpoint else "half"].tensors["half"].dtype == torch.bfloat16
    assert checkpoint.metadata == {"step": 5} and "left out 10 values of an optimizer" in checkpoint.notes


def test_the_folder_of_a_saved_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(CheckpointError, match=r"variables\.index is not beside it"):
        read_checkpoint(tmp_path)
    written(tmp_path / "variables", {"a/kernel": np.ones((2, 3), "f4")}, "variables")
    for path in (tmp_path, tmp_path / "saved_model.pb", tmp_path / "variables"):
        assert set(read_checkpoint(path).state_dict()) == {"a.kernel"}


def test_a_checkpoint_is_found_by_its_prefix_and_by_content(tmp_path: Path) -> None:
    path = written(tmp_path, {"a": np.ones(2, "f8"), "b": np.ones(2, "f2")})
    with pytest.raises(CheckpointError, match=r"is read by 'model\.index'"):
        read_checkpoint(tmp_path / "model")
    shutil.copy(path, tmp_path / "renamed.pt")
    with pytest.raises(CheckpointError, match=r"'renamed\.pt\.data-00000-of-00001'.*put it there"):
        read_checkpoint(tmp_path / "renamed.pt")


def refused(folder: Path, index: bytes, words: str) -> None:
    path = written(folder, {"a": np.ones((2, 3), "f4")})
    path.write_bytes(index)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path)


HEADER = {b"": message({1: 1})}


def entry(**changes: Any) -> bytes:
    own = {1: 1, 2: message({2: [message({1: 2}), message({1: 3})]}), 4: 0, 5: 24}
    return message(own | {int(key[1:]): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (table({**HEADER, b"a": entry(f5=25)}), "lies at 0 to 25"),
        (table({**HEADER, b"a": entry(f4=-8)}), "lies at -8"),
        (table({**HEADER, b"a": entry(f3=5)}), "data-00005-of-00001.*put it there"),
        (table({**HEADER, b"a": entry(f2=message({2: [message({1: 1 << 40})] * 2}))}), "declares a shape"),
        (
            table({**HEADER, b"a": entry(), b"b": entry(f4=4, f5=20, f2=message({2: [message({1: 5})]}))}),
            "overlap",
        ),
        (table({**HEADER, b"b": entry(), b"a": entry()}), "not in order"),
        (table({**HEADER, b"a": entry(f7=[message({})] * 2)}), "do not make a whole"),
        (table({b"": message({2: 1}), b"a": entry()}), "byte order"),
        (table({b"a": entry()}), "without the usual header"),
        (table({**HEADER, b"a": entry()}, compression=1), "compressed index"),
        (table({**HEADER, b"a": entry()}, shared=7), "an entry of the index"),
        (table({**HEADER, b"a" * 5000: entry()}), "an entry of the index"),
        (table({**HEADER, **{b"a" * 4000 + b"%05d" % n: b"" for n in range(9000)}}), "larger than any model"),
        (table({**HEADER, b"a": entry()})[:-9], "without its end"),
        (table({**HEADER, b"a": entry()}).replace(b"a", b"b", 1), "checksum"),
        (table({**HEADER, b"a": entry(f1=7)}), "no variables"),
        (table(HEADER), "no variables"),
        (table({**HEADER, b"a": b"\xff" * 30}), "without an end"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, index: bytes, words: str) -> None:
    refused(tmp_path, index, words)


def test_data_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = written(tmp_path / "inside", {"a": np.ones(2, "f4")})
    data = path.with_name("model.data-00000-of-00001")
    data.rename(tmp_path / "secret")
    data.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link"):
        read_checkpoint(path)


def test_names_that_read_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="slashes and dots"):
        read_checkpoint(written(tmp_path, {"a/b": np.ones(2, "f4"), "a.b": np.ones(2, "f4")}))


@pytest.mark.parametrize("name", ["kernel", "weights"])
def test_variables_are_turned_by_the_module_that_takes_them(name: str) -> None:
    kernel = torch.randn(3, 3, 4, 8)  # height, width, inputs, outputs
    bias = {"kernel": "bias", "weights": "biases"}[name]
    source = Layer(0, "conv", "other", {name: kernel, bias: torch.ones(8)}, layout="tensorflow")
    conv = torch.nn.Conv2d(4, 8, 3)
    assert transfer_layer(conv, source).adapted == ("weight", "bias")[: 1 + (bias != "bias")]
    assert torch.equal(conv.weight, kernel.permute(3, 2, 0, 1))
    assert torch.equal(conv.bias, torch.ones(8))
