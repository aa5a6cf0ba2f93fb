"""HDF5 files: every array of numbers bit for bit, nothing outside the file, no more memory than it has bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.test_hostile import peak_memory, reset_peak
from transferkit import read_checkpoint
from transferkit.errors import CheckpointError

h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py")
FLOATS = np.random.default_rng(0).normal(size=(7, 5)).astype("f4")


def written(tmp_path: Path, write: Callable[[Any], None], **options: Any) -> Path:
    path = tmp_path / "file.h5"
    with h5py.File(path, "w", **options) as file:
        write(file)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (3, 2)},
        {"compression": "gzip", "chunks": (3, 2)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (4, 5)},
        {"shuffle": True, "chunks": (7, 5)},
    ],
)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8", ">i2", "u1", "?", "<c8"])
def test_every_way_to_store_an_array_is_read(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    array = (FLOATS * 10).astype(dtype)
    path = written(tmp_path, lambda file: file.create_dataset("a/b/c", data=array, **options))
    tensor = read_checkpoint(path)["a.b"].tensors["c"]
    assert np.array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_names_shapes_and_scalars(tmp_path: Path, libver: str) -> None:
    def write(file: Any) -> None:
        file["net/fc/weight:0"] = FLOATS
        file["net/step"] = np.int64(3)
        file["net/none"] = np.zeros((0, 4), "f4")
        file["net/tied"] = file["net/fc/weight:0"]
        file["text"] = "words"
        file["elsewhere"] = h5py.SoftLink("/net")

    checkpoint = read_checkpoint(written(tmp_path, write, libver=libver))
    assert torch.equal(checkpoint["net.fc"].tensors["weight"], torch.from_numpy(FLOATS))
    assert checkpoint["net"].tensors["step"].item() == 3
    assert checkpoint["net"].tensors["none"].shape == (0, 4)
    assert checkpoint.shared == (("net.tied", "net.fc.weight"),)
    assert "text (not plain numbers)" in checkpoint.notes[-1]
    assert "elsewhere (a link to '/net')" in checkpoint.notes[-1]
    assert checkpoint.format == "hdf5"
    assert checkpoint[0].layout == "hdf5"


def test_bfloat16(tmp_path: Path) -> None:
    def write(file: Any) -> None:
        kind = h5py.h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        space = h5py.h5s.create_simple((2,))
        h5py.h5d.create(file.id, b"a", kind, space).write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([1.5, -2], "f4"))

    assert torch.equal(
        read_checkpoint(written(tmp_path, write))[0].tensors["a"], torch.tensor([1.5, -2]).bfloat16()
    )


def test_a_contiguous_array_is_mapped(tmp_path: Path) -> None:
    path = written(tmp_path, lambda file: file.create_dataset("w", data=np.zeros(50_000_000, "f4")))
    reset_peak()
    before = peak_memory()
    assert read_checkpoint(path)[0].tensors["w"][-1] == 0
    assert peak_memory() - before < 50


def external_link(file: Any) -> None:
    file["a"] = h5py.ExternalLink("other.h5", "/a")


def external_storage(file: Any) -> None:
    file.create_dataset("a", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (4,))
    file.create_virtual_dataset("a", layout)


def declared(file: Any) -> None:
    file.create_dataset("a", (100_000_000_000,), "f4")


def declared_chunks(file: Any) -> None:
    file.create_dataset("a", (100_000_000,), "f4", chunks=(1000,))


def bomb(file: Any) -> None:
    data = file.create_dataset("a", (1 << 30,), "u1", chunks=(1 << 30,), compression="gzip")
    data.id.write_direct_chunk((0,), b"x\x9c\x03\x00\x00\x00\x00\x01")


def long_chunk(file: Any) -> None:
    import zlib

    data = file.create_dataset("a", (4,), "u1", chunks=(4,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(b"\0" * 100_000_000))


def cycle(file: Any) -> None:
    file["a/b"] = np.zeros(3)
    file["a/c"] = file["a"]


def twice(file: Any) -> None:
    file["a/b"] = np.zeros(3)
    file["c"] = file["a"]


def unknown_filter(file: Any) -> None:
    file.create_dataset("a", data=np.zeros((100, 100)), compression="lzf")


def same_name(file: Any) -> None:
    file["a/b"] = FLOATS
    file["a.b"] = FLOATS
    file["a_b"] = FLOATS


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (external_link, "link to another file"),
        (external_storage, "in other files"),
        (virtual, "in other files"),
        (declared, "declares 400,000,000,000 bytes"),
        (declared_chunks, "declares 100,000 chunks of values and stores 0"),
        (bomb, "declare far more than the file"),
        (long_chunk, "a chunk of /a has 8 of 4 bytes"),
        (cycle, "a group that other names lead to"),
        (twice, "a group that other names lead to"),
        (unknown_filter, "h5repack -f NONE"),
        (same_name, "same name"),
    ],
)
def test_what_leads_out_or_declares_too_much_is_refused(tmp_path: Path, write: Any, words: str) -> None:
    path = written(tmp_path, write)
    reset_peak()
    before = peak_memory()
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(path)
    assert peak_memory() - before < 50


def test_no_module_beside_the_file_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file["w"] = np.ones(3)
        file.attrs["name"] = "net"  # a text of any length, which a process of its own reads
    for name in ("json", "h5py", "numpy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    assert list(read_checkpoint("model.h5").state_dict()) == ["w"]
    assert not (tmp_path / "ran").exists()
