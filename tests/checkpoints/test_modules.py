"""Whole pickled modules and TorchScript give the parameters and buffers of ``state_dict``, and nothing of them is made."""

from __future__ import annotations

import argparse
import io
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import transferkit as tk
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import CheckpointError

LIBRARY = ModuleType("their_library")  # is there when a file is written, and gone when it is read


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4, eps=1e-3)
        )
        self.rows = nn.ModuleList([nn.LayerNorm(4), nn.Linear(4, 4)])
        self.again = self.rows[1]
        self.table = nn.Embedding(5, 4)
        self.lstm = nn.LSTM(4, 2)
        self.scale = nn.Parameter(torch.arange(3.0))
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("scratch", torch.ones(7), persistent=False)
        self.loose = [torch.ones(2), {"deep": torch.zeros(3)}]
        self.trainer = argparse.Namespace(model=self, steps=[3, 4])
        self.classes = ["cat", "dog"]


Net.__module__, Net.__qualname__ = LIBRARY.__name__, "Net"
LIBRARY.Net = Net  # type: ignore[attr-defined]


def written(saved: object, how: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    buffer = io.BytesIO()
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch finds no source of the class
        patch.setitem(sys.modules, LIBRARY.__name__, LIBRARY)
        if how == "torch":
            torch.save(saved, buffer)
        elif how == "legacy":
            torch.save(saved, buffer, _use_new_zipfile_serialization=False)
        else:
            pickle.dump(saved, buffer, int(how))
    return buffer.getvalue()


def same(found: Checkpoint, wanted: dict[str, Tensor]) -> bool:
    tensors = found.state_dict()
    return list(tensors) == list(wanted) and all(
        torch.equal(tensors[key], wanted[key]) and tensors[key].dtype == wanted[key].dtype for key in wanted
    )


WAYS = ["torch", "legacy", "0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("around", [lambda net: net, lambda net: {"epoch": 3, "model": net}, lambda net: [net]])
@pytest.mark.parametrize("how", WAYS)
def test_a_module_is_its_state_dict(
    how: str, around: Callable[[Net], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    path = tmp_path / "model.pkl"
    path.write_bytes(written(around(net), how, monkeypatch))
    found = read_checkpoint(path)
    assert same(found, net.state_dict())
    assert LIBRARY.__name__ not in sys.modules
    notes = " ".join(found.notes)
    assert "class their_library.Net, which was not made" in notes
    assert "neither parameters nor saved buffers: scratch, loose.0, loose.1.deep" in notes
    assert "their_library.Net" in notes and "argparse.Namespace" in notes
    assert found.metadata["class"] == "their_library.Net" and found.metadata["classes"] == ["cat", "dog"]


def test_what_the_file_says_of_a_layer_is_its_kind_and_attributes(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8, eps=1e-3), nn.PReLU()
    ).eval()
    torch.save(nn.DataParallel(net), tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")
    assert found.names == ("0", "1", "2")
    assert [layer.kind for layer in found] == [layer.kind for layer in tk.layers_of(net)]
    said = found["0"].attributes
    assert (said["stride"], said["padding"], said["groups"], said["training"]) == ((2, 2), (1, 1), 2, False)
    assert found["1"].attributes["eps"] == 1e-3 and found["1"].attributes["class"].endswith("BatchNorm2d")
    other = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(8, eps=1e-3), nn.PReLU()
    )
    tk.WeightTransfer(found).apply(other)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in net.state_dict().items())


def test_a_module_that_the_key_names_and_a_part_of_it(tmp_path: Path) -> None:
    pair = {"generator": nn.Sequential(nn.Linear(2, 2)), "critic": nn.Sequential(nn.Linear(3, 1))}
    torch.save(pair, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").names == ("generator.0", "critic.0")
    assert read_checkpoint(tmp_path / "x.pt", key="critic").names == ("0",)
    assert list(read_checkpoint(tmp_path / "x.pt", key="critic.0").state_dict()) == ["weight", "bias"]
    with pytest.raises(CheckpointError, match=r"no tensors under the key 'critik'; did you mean 'critic'"):
        read_checkpoint(tmp_path / "x.pt", key="critik")


@pytest.mark.parametrize("how", WAYS)
def test_values_beside_a_state_dict_are_no_reason_to_refuse(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {
        "state_dict": {"fc.weight": torch.ones(2, 3)},
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, out=Path("runs/1"), nested=argparse.Namespace(depth=3)),
        "optimizer_class": torch.optim.Adam,
        "activation": torch.relu,
        "weights_of_classes": {np.int64(0): 1.0},
        "names": np.array(["a", None], dtype=object),
        "words": np.array(["cat", "dog"]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": torch.Size([3, 4]),
    }
    path = tmp_path / "x.pt"
    path.write_bytes(written(saved, how, monkeypatch))
    found = read_checkpoint(path)
    assert list(found.state_dict()) == ["fc.weight"]
    wanted = {
        "best": 0.5,
        "args.lr": 0.1,
        "args.out": "runs/1",
        "args.nested.depth": 3,
        "weights_of_classes.0": 1.0,
        "names": ["a", None],
        "words": ["cat", "dog"],
        "dtype": "torch.float16",
    }
    assert {key: found.metadata.get(key) for key in wanted} == wanted
    assert found.metadata["optimizer_class"] == "torch.optim.adam.Adam"


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 3)])
        self.shift = torch.arange(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[0](self.norm(self.conv(x)).mean((2, 3))) + self.shift[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("traced", [False, True])
def test_torchscript_is_read_without_its_program(traced: bool, tmp_path: Path) -> None:
    net = Scripted().eval()
    made = torch.jit.trace(net, torch.ones(1, 3, 8, 8)) if traced else torch.jit.script(net)
    made.save(str(tmp_path / "x.pt"))
    found = read_checkpoint(tmp_path / "x.pt")
    tensors = found.state_dict()
    wanted: dict[str, Any] = {
        **net.state_dict(),
        **({} if traced else {"shift": net.shift}),
    }  # traced: a constant
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)
    assert found["conv"].kind == "conv" and "TorchScript, whose program was not run" in found.notes


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_read_without_running(tmp_path: Path) -> None:
    net = Net().eval()
    net.forward = lambda x: net.again(net.rows[0](net.stem(x).mean((2, 3))))  # type: ignore[method-assign]
    torch.export.save(torch.export.export(net, (torch.ones(2, 3, 8, 8),)), tmp_path / "x.pt2")
    found = read_checkpoint(tmp_path / "x.pt2")
    assert found.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(found.state_dict()[key], value) for key, value in net.state_dict().items())
    assert found.shared and found.format == "torch export"
    for suffix in ("weight", "example_inputs"):
        torch.save(net.state_dict() if suffix == "weight" else [torch.ones(2)], tmp_path / suffix)
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.write(tmp_path / "weight", "serialized_state_dict.pt")
        archive.write(tmp_path / "example_inputs", "serialized_example_inputs.pt")
    assert read_checkpoint(tmp_path / "old.pt2").state_dict().keys() == net.state_dict().keys()


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_are_refused_by_name_and_others_beside_them_are_not(tmp_path: Path) -> None:
    state = {
        "fc.weight": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "fc.bias": torch.ones(2),
    }
    for new in (True, False):
        torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match=r"fc\.weight \(a quantized tensor\).*dequantize"):
            read_checkpoint(tmp_path / "x.pt")
        torch.save({"model": {"fc.bias": torch.ones(2)}, "small": state}, tmp_path / "x.pt")
        assert list(read_checkpoint(tmp_path / "x.pt").state_dict()) == ["fc.bias"]


def test_modules_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net._modules["me"] = net
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(net))
    with pytest.raises(CheckpointError, match="a module that contains itself"):
        read_checkpoint(path)
