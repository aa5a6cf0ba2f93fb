"""Sharded checkpoints of torch.distributed.checkpoint: equal to the unsharded, lazy, and no code of theirs runs."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._shard.sharded_tensor import metadata as before_2_3
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

import transferkit as tk
from transferkit.errors import CheckpointError
from transferkit.memory import DeferredTensor

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FILES = Path(__file__).parent / "files"


@pytest.fixture
def two_ranks(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES / "dcp_2_ranks", tmp_path / "saved"))


def unread(checkpoint: tk.Checkpoint) -> set[str]:
    return {
        key
        for key, t in checkpoint.state_dict().items()
        if isinstance(t, DeferredTensor) and "value" not in vars(t)
    }


def momenta(checkpoint: tk.Checkpoint) -> dict[str, torch.Tensor]:
    states = {layer.key(short): state for layer in checkpoint for short, state in layer.states.items()}
    return {key: state["momentum_buffer"] for key, state in states.items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype, key


def test_two_ranks_equal_the_unsharded_model(two_ranks: Path) -> None:
    whole = torch.load(FILES / "dcp_2_ranks.pt")
    checkpoint = tk.read_checkpoint(two_ranks)
    assert unread(checkpoint) == set(whole["model"])  # shapes and dtypes cost nothing
    assert checkpoint.metadata["epoch"] == 3 and checkpoint[0].ordered
    assert_same(checkpoint.state_dict(), whole["model"])
    assert_same(momenta(checkpoint), whole["momentum"])
    assert {file.name for file in checkpoint.files} == {".metadata", "__0_0.distcp", "__1_0.distcp"}


def test_one_layer_reads_no_other(two_ranks: Path) -> None:
    checkpoint = tk.read_checkpoint(two_ranks)
    target = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    transfer = tk.WeightTransfer(checkpoint, select=tk.by_name("0"))
    transfer.plan(target)
    assert unread(checkpoint) == set(checkpoint.state_dict())  # a dry run reads nothing
    transfer.apply(target)
    assert torch.equal(target[0].weight, checkpoint["0"].tensors["weight"])
    assert unread(checkpoint) == {key for key in checkpoint.state_dict() if not key.startswith("0.")}


@pytest.mark.parametrize("form", ["flat", "names", "numbers", "flat optimizer", "deeper"])
def test_what_people_save(form: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 2, 3, 3)).sum().backward()
    optimizer.step()
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flat optimizer")
    weights, states = get_state_dict(model, optimizer, options=options)
    saved = {"model": weights, "optim": optimizer.state_dict() if form == "numbers" else states}
    nested: dict[str, Any] = {"flat": weights, "deeper": {"app": saved}}.get(form, saved)
    dcp.save(nested, checkpoint_id=tmp_path / "saved", no_dist=True)
    checkpoint = tk.read_checkpoint(tmp_path / "saved")
    assert_same(checkpoint.state_dict(), model.state_dict())
    wanted = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    assert_same(momenta(checkpoint), {} if form == "flat" else wanted)


def test_metadata_of_torch_before_2_3(two_ranks: Path) -> None:
    def age(metadata: Metadata) -> None:
        for about in metadata.state_dict_metadata.values():
            if hasattr(about, "properties"):
                about.properties = before_2_3.TensorProperties(about.properties.dtype)
        del metadata.storage_meta
        vars(metadata).pop("version", None)

    change(two_ranks, age)
    assert_same(tk.read_checkpoint(two_ranks).state_dict(), torch.load(FILES / "dcp_2_ranks.pt")["model"])


def test_ranks_that_tell_no_order_are_put_in_that_of_names(two_ranks: Path) -> None:
    change(two_ranks, lambda metadata: metadata.planner_data.clear())
    checkpoint = tk.read_checkpoint(two_ranks, key=None)
    assert not checkpoint[0].ordered and any("natural order" in note for note in checkpoint.notes)


def test_a_part_alone_leads_to_its_folder(two_ranks: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        assert len(tk.read_checkpoint(two_ranks / name)) == 3
    (two_ranks / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="one rank's part"):
        tk.read_checkpoint(two_ranks / "__0_0.distcp")


# Hostile and damaged ones.


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch canary",)


def change(folder: Path, how: Callable[[Metadata], object]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    how(metadata)
    path.write_bytes(pickle.dumps(metadata))


def _weight(metadata: Metadata) -> Any:
    return metadata.state_dict_metadata["model.0.weight"]


def _info(metadata: Metadata, name: str = "model.0.weight") -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def _size(numbers: list[int]) -> torch.Size:
    return torch.Size(numbers)


HOSTILE: dict[str, Callable[[Metadata], object]] = {
    "calls in a value": lambda m: setattr(m, "planner_data", Evil()),
    "calls in a key": lambda m: m.storage_data.update({Evil(): _info(m)}),
    "a class of its own": lambda m: setattr(m, "storage_meta", pytest.Item),
    "leaves the folder": lambda m: setattr(_info(m), "relative_path", "../saved/__0_0.distcp"),
    "absolute": lambda m: setattr(_info(m), "relative_path", "/etc/passwd"),
    "no name": lambda m: setattr(_info(m), "relative_path", ".."),
    "a file that is not there": lambda m: setattr(_info(m), "relative_path", "__7_0.distcp"),
    "past the end": lambda m: setattr(_info(m), "offset", 1 << 40),
    "before the beginning": lambda m: setattr(_info(m), "offset", -8),
    "longer than the file": lambda m: setattr(_info(m), "length", 1 << 40),
    "shorter than its numbers": lambda m: setattr(_info(m), "length", 8),
    "another's bytes": lambda m: vars(_info(m)).update(vars(_info(m, "model.0.bias"))),
    "encoded": lambda m: setattr(_info(m), "transform_descriptors", ["zstd"]),
    "a part missing": lambda m: _weight(m).chunks.pop(),
    "a part twice": lambda m: _weight(m).chunks.append(_weight(m).chunks[0]),
    "parts that overlap": lambda m: setattr(_weight(m).chunks[1], "offsets", _size([1, 0])),
    "a part outside": lambda m: setattr(_weight(m).chunks[1], "offsets", _size([9, 0])),
    "a negative part": lambda m: setattr(_weight(m).chunks[1], "offsets", _size([-1, 0])),
    "of fewer dimensions": lambda m: setattr(_weight(m), "size", _size([12])),
    "huge": lambda m: (
        setattr(_weight(m), "size", _size([1 << 38, 4])),
        setattr(_weight(m), "chunks", [ChunkStorageMetadata(_size([0, 0]), _size([1 << 38, 4]))]),
    ),
    "of another shape": lambda m: (
        setattr(_weight(m), "size", _size([4, 3])),
        [setattr(c, "sizes", _size([2, 3])) or setattr(c, "offsets", _size([2 * n, 0])) for n, c in enumerate(_weight(m).chunks)],
    ),
    "of another dtype": lambda m: setattr(_weight(m).properties, "dtype", torch.int32),
    "no place": lambda m: m.storage_data.clear(),
    "nested without end": lambda m: m.planner_data.update({"epoch": tuple("a" * 99)}),
    "two values at one place": lambda m: m.planner_data.update({"model.0.bias": ("model", "0.weight")}),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_metadata_is_refused(what: str, two_ranks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_ranks.parent)
    change(two_ranks, HOSTILE[what])
    target = nn.Linear(4, 3)
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(CheckpointError):
        _ = [tensor.clone() for tensor in tk.read_checkpoint(two_ranks).state_dict().values()]
    with pytest.raises(tk.TransferKitError):
        tk.WeightTransfer(tk.read_checkpoint(two_ranks), mapping={"": "0"}).apply(target)
    assert_same(target.state_dict(), before)
    assert not Path("canary").exists()


def test_a_value_that_would_run_code_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dcp.save({"fc.weight": torch.ones(2, 3), "trap": Evil()}, checkpoint_id="saved", no_dist=True)
    (tmp_path / "canary").unlink(missing_ok=True)
    checkpoint = tk.read_checkpoint("saved")
    assert torch.equal(checkpoint["fc"].tensors["weight"], torch.ones(2, 3))
    assert any("trap" in note and "system" in note for note in checkpoint.notes)
    assert not Path("canary").exists()
