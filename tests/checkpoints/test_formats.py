"""Every format gives back what was saved, mapped where it can be, and is found by its content."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from tests.checkpoints.hostile_files import torch_tar_of
from transferkit.checkpoints import Checkpoint, Contents, read_checkpoint, register_reader, unregister_reader
from transferkit.errors import ArgumentError, CheckpointError, MissingExtraError

STATE = {
    "features.0.weight": torch.arange(54.0).reshape(2, 3, 3, 3),
    "features.0.bias": torch.tensor([0.5, -0.5]),
    "features.10.weight": torch.arange(6, dtype=torch.float16).reshape(3, 2),
    "features.2.running_mean": torch.tensor([1.0, 2.0], dtype=torch.float64),
    "features.2.num_batches_tracked": torch.tensor(7),
}


def write(path: Path, kind: str, state: dict[str, Tensor]) -> None:
    if kind == "torch":
        torch.save(state, path)
    elif kind == "torch legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state.items()})
    elif kind == "npz compressed":
        np.savez_compressed(path, **{key: tensor.numpy() for key, tensor in state.items()})
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {key: tensor.numpy() for key, tensor in state.items()}}, 2))


@pytest.mark.parametrize("kind", ["torch", "torch legacy", "safetensors", "npz", "npz compressed", "pickle"])
@pytest.mark.parametrize("suffix", ["", ".weights"])
def test_what_was_saved_is_read(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"file{suffix}"
    write(path.with_suffix(".npz") if kind.startswith("npz") else path, kind, STATE)
    if kind.startswith("npz"):
        path.with_suffix(".npz").rename(path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == kind.removesuffix(" compressed")
    found = checkpoint.state_dict()
    assert found.keys() == STATE.keys()
    assert all(
        torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in STATE.items()
    )


def test_layers_keep_the_files_order_or_take_the_natural_one(tmp_path: Path) -> None:
    for kind in ("torch", "torch legacy", "npz"):
        path = tmp_path / f"{kind}.npz"
        write(path, kind, STATE)
        assert read_checkpoint(path).names == ("features.0", "features.10", "features.2")
    write(tmp_path / "a.safetensors", "safetensors", STATE)
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.names == ("features.0", "features.2", "features.10")
    assert "natural order" in checkpoint.notes[-1]


@pytest.mark.parametrize("kind", ["torch", "safetensors", "npz"])
def test_tensors_are_mapped_and_not_read(kind: str, tmp_path: Path) -> None:
    """A value changed in the file after reading shows in the tensor, so its bytes had not been read."""
    path = tmp_path / "big.npz"
    write(path, kind, {"a.weight": torch.full((1 << 16,), 3.0), "b.weight": torch.full((1 << 16,), 5.0)})
    checkpoint = read_checkpoint(path)
    assert checkpoint["b"].shapes == {"weight": (1 << 16,)}
    content = path.read_bytes().replace(
        torch.tensor(5.0).numpy().tobytes(), torch.tensor(7.0).numpy().tobytes()
    )
    with path.open("r+b") as file:
        file.write(content)
    assert checkpoint["b"].tensors["weight"].eq(7).all()
    assert checkpoint["a"].tensors["weight"].eq(3).all()


@pytest.mark.parametrize("kind", ["torch", "npz", "safetensors"])
def test_a_mapped_tensor_can_be_written_to_without_changing_the_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write(path, kind, {"a.weight": torch.ones(100)})
    read_checkpoint(path)["a"].tensors["weight"].zero_()
    assert read_checkpoint(path)["a"].tensors["weight"].eq(1).all()


@pytest.mark.parametrize("kind", ["torch", "torch legacy"])
def test_ties_of_a_torch_file_are_kept(kind: str, tmp_path: Path) -> None:
    weight = torch.ones(3, 2)
    write(tmp_path / "x", kind, {"embed.weight": weight, "norm.weight": torch.ones(2), "head.weight": weight})
    assert read_checkpoint(tmp_path / "x").shared == (("embed.weight", "head.weight"),)


def test_ties_that_safetensors_dropped_are_restored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_model(model, tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.shared == (("0.weight", "1.weight"),)
    model.load_state_dict(checkpoint.state_dict(), strict=True)


def test_torchs_tar_archive(tmp_path: Path) -> None:
    arrays = {"fc.weight": np.arange(6, dtype="f4").reshape(2, 3), "fc.bias": np.ones(2, "f4")}
    (tmp_path / "old.pt").write_bytes(torch_tar_of(arrays))
    checkpoint = read_checkpoint(tmp_path / "old.pt")
    assert checkpoint.format == "torch tar"
    assert all(np.array_equal(checkpoint.state_dict()[key], array) for key, array in arrays.items())


def test_slashes_in_npz_names_become_dots(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "jax.npz",
        **{"encoder/conv/kernel": np.ones(2), "encoder/conv/bias": np.ones(1), "text": "abc"},
    )
    checkpoint = read_checkpoint(tmp_path / "jax.npz")
    assert checkpoint.names == ("encoder.conv",)
    assert "left out what is not a number: text" in checkpoint.notes


def shards(folder: Path, suffix: str) -> dict[str, str]:
    keys = list(STATE)
    parts = {f"model-1{suffix}": keys[:2], f"model-2{suffix}": keys[2:]}
    for name, part in parts.items():
        write(folder / name, "torch" if suffix == ".bin" else "safetensors", {key: STATE[key] for key in part})
    return {key: name for name, part in parts.items() for key in part}


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_sharded_folders_and_their_index(suffix: str, tmp_path: Path) -> None:
    weight_map = shards(tmp_path, suffix)
    index = tmp_path / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for source in (tmp_path, index):
        checkpoint = read_checkpoint(source)
        assert checkpoint.format == "sharded"
        assert all(torch.equal(checkpoint.state_dict()[key], value) for key, value in STATE.items())
    assert len(read_checkpoint(tmp_path).sha256 or "") == 64
    (tmp_path / f"model-2{suffix}").unlink()
    with pytest.raises(CheckpointError, match=f"1 of 2 shards are missing: model-2{suffix}"):
        read_checkpoint(tmp_path)


def test_a_folder_with_one_file_of_weights(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_model.bin", "torch", STATE)
    (tmp_path / "config.json").write_text("{}")
    assert "read by way of pytorch_model.bin" in read_checkpoint(tmp_path).notes
    write(tmp_path / "second.bin", "torch", STATE)
    with pytest.raises(CheckpointError, match="2 files of weights and no index; name one"):
        read_checkpoint(tmp_path)


def test_devices(device: torch.device, tmp_path: Path) -> None:
    write(tmp_path / "x.pt", "torch", STATE)
    checkpoint = read_checkpoint(tmp_path / "x.pt", device=device)
    assert all(tensor.device.type == device.type for tensor in checkpoint.state_dict().values())
    assert torch.equal(checkpoint.state_dict()["features.0.bias"].cpu(), STATE["features.0.bias"])


@pytest.mark.parametrize("trusted", [False, True])
def test_a_whole_module_is_read_and_made_only_if_trusted(trusted: bool, tmp_path: Path) -> None:
    torch.save({"model": nn.Sequential(nn.Linear(2, 2))}, tmp_path / "x.pt")
    checkpoint = read_checkpoint(tmp_path / "x.pt", trusted=trusted)
    assert checkpoint.names == ("0",)
    assert any("was not made" in note for note in checkpoint.notes) is not trusted


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.safetensors", "safetensors", STATE)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install transferkit\[safetensors\]"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "a failed download"),
        (b"", "the file is empty"),
        (b"what is this", "Known are: .*register_reader"),
    ],
)
def test_what_is_no_checkpoint_is_told_what_it_is(content: bytes, advice: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\.pth: .*{advice}"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "nowhere.pth")


def test_a_format_of_ones_own(tmp_path: Path) -> None:
    @register_reader("lines", matches=lambda path, head: head.startswith(b"#lines"), suffixes=(".txt",))
    def read_lines(path: Path, options: object) -> Contents:
        rows = [line.split() for line in path.read_text().splitlines()[1:]]
        return Contents({name: torch.tensor(float(number)) for name, number in rows})

    try:
        (tmp_path / "w").write_text("#lines\nfc.bias 2.5")
        checkpoint = read_checkpoint(tmp_path / "w")
        assert isinstance(checkpoint, Checkpoint) and checkpoint.format == "lines"
        assert checkpoint["fc"].tensors["bias"] == 2.5
        with pytest.raises(ArgumentError, match="no reader has yet"):
            register_reader("lines", suffixes=(".x",))
        with pytest.raises(ArgumentError, match="format must be one of"):
            read_checkpoint(tmp_path / "w", format="line")
    finally:
        unregister_reader("lines")


def test_tensors_whose_names_differ_by_a_dot_are_two(tmp_path: Path) -> None:
    given = {
        name: torch.full((1,), float(n))
        for n, name in enumerate(["x", ".x", "..x", "a.x", "a..x", ".parametrizations.x", "parametrizations.x"])
    }
    assert read_checkpoint(given).state_dict() == given
    for kind in ("torch", "torch legacy", "safetensors", "npz"):
        write(tmp_path / "x.npz", kind, given)
        assert read_checkpoint(tmp_path / "x.npz").state_dict() == given


def test_torch_files_of_any_pickle_protocol_with_numpys_numbers_beside_the_weights(tmp_path: Path) -> None:
    saved = {"model": STATE, "best": np.float64(0.5), "history": np.arange(3)}
    for protocol in (2, 3, 4, 5):
        torch.save(saved, tmp_path / "x.pt", pickle_protocol=protocol)
        checkpoint = read_checkpoint(tmp_path / "x.pt")
        assert checkpoint.metadata["best"] == 0.5
        assert all(torch.equal(checkpoint.state_dict()[key], value) for key, value in STATE.items())


def test_what_torch_saves_is_what_is_read(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    saved = {
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.ones(1).expand(5),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "eighth": torch.ones(3).to(torch.float8_e4m3fn),
        "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
        "complex": torch.ones(2, dtype=torch.complex64),
        "flags": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    for new in (True, False):
        torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        found = read_checkpoint(tmp_path / "x.pt").state_dict()
        assert list(found) == list(saved)
        for name, tensor in saved.items():
            assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
            assert found[name].tolist() == tensor.tolist(), name
        assert found["slice"].data_ptr() - found["transposed"].data_ptr() == 6 * 4


def test_a_file_of_the_other_byte_order_has_the_same_values(tmp_path: Path) -> None:
    weight = torch.arange(6, dtype=torch.float32)
    torch.save({"a.weight": weight}, tmp_path / "x.pt")
    swapped = tmp_path / "y.pt"
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(swapped, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            if member.filename.endswith("byteorder"):
                content = b"big" if sys.byteorder == "little" else b"little"
            if "/data/" in member.filename:
                content = weight.numpy().byteswap().tobytes()
            target.writestr(member.filename, content)
    assert torch.equal(read_checkpoint(swapped).state_dict()["a.weight"], weight)


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(1))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive, zipfile.ZipFile(tmp_path / "x.npz") as source:
        archive.writestr("a", source.read("a.npy"))
        archive.writestr("a.npy", source.read("a.npy"))
    with pytest.raises(CheckpointError, match="two arrays are called 'a'"):
        read_checkpoint(tmp_path / "y.npz", format="npz")
