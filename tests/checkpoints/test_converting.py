"""Converting to safetensors: values stay, names and dtypes change as asked, and a kill leaves no half file."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import transferkit as tk
from transferkit.checkpoints import _converting as module
from transferkit.checkpoints import convert_checkpoint
from transferkit.cli import main
from transferkit.errors import ArgumentError, CheckpointError, OutputError, SelectionError

DCP = Path(__file__).parent / "files" / "dcp_2_ranks"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {
        "net.conv.weight": torch.randn(4, 3, 3, 3),
        "net.conv.bias": torch.randn(4),
        "net.bn.running_var": torch.rand(4),
        "net.bn.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.randn(8, 4).t(),  # not contiguous
    }
    torch.save({"model": state, "epoch": 3, "note": "hello"}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_one_file_holds_the_same_values_and_what_was_beside_them(saved: Path, tmp_path: Path) -> None:
    made = convert_checkpoint(saved, tmp_path / "b.safetensors")
    wanted, found = torch.load(saved)["model"], load_file(made.files[0])
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    again = tk.read_checkpoint(made.files[0])
    assert dict(again.metadata) == {"epoch": "3", "note": "hello", "format": "pt"}
    assert made.tensors == 5 and made.bytes == sum(t.nbytes for t in wanted.values())
    assert "5 equal the source bit for bit" in str(made)


@pytest.mark.parametrize("limit", [1, 150, 10_000])
def test_shards_have_their_size_and_hugging_faces_names(limit: int, saved: Path, tmp_path: Path) -> None:
    made = convert_checkpoint(saved, tmp_path / "out", max_shard_size=limit)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    contents = [load_file(shard) for shard in shards]
    assert all(len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit for held in contents)
    assert (
        all(a.numel() for held in contents for a in held.values()) and sum(map(len, contents)) == made.tensors
    )
    if len(shards) > 1:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == made.bytes
        assert index["weight_map"] == {
            key: shard.name for shard, held in zip(shards, contents, strict=True) for key in held
        }
        assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    wanted = torch.load(saved)["model"]
    found = tk.read_checkpoint(tmp_path / "out").state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_rename_select_and_dtype(saved: Path, tmp_path: Path) -> None:
    rename, select = {"body.*": "net.*", "head": "fc"}, ~tk.by_name("net.bn")
    made = convert_checkpoint(
        saved, tmp_path / "b.safetensors", rename=rename, select=select, dtype=torch.float16
    )
    wanted, found = torch.load(saved)["model"], load_file(made.files[0])
    assert set(found) == {"body.conv.weight", "body.conv.bias", "head.weight"} == set(made.cast)
    assert torch.equal(found["head.weight"], wanted["fc.weight"].half())
    assert made.cast["head.weight"].largest == float((wanted["fc.weight"] - found["head.weight"]).abs().max())
    by_function = convert_checkpoint(
        saved,
        tmp_path / "c.safetensors",
        rename=str.upper,
        select=lambda index, layer: index == 1,
        dtype=torch.float64,
    )
    kept = load_file(by_function.files[0])  # a count stays a whole number
    assert {key: t.dtype for key, t in kept.items()} == {
        "NET.BN.running_var": torch.float64,
        "NET.BN.num_batches_tracked": torch.int64,
    }


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rename": {"a": "nett.conv"}}, ArgumentError, "did you mean 'net.conv'"),
        ({"rename": {"same": "*"}}, ArgumentError, "one \\*"),
        ({"select": lambda index, layer: False}, SelectionError, "none of the 3 layers"),
        ({"select": tk.by_name("zz")}, SelectionError, "zz"),
        ({"dtype": torch.int8}, ArgumentError, "floating"),
        ({"max_shard_size": "0.5KB"}, ArgumentError, "max_shard_size"),
        ({"max_shard_size": 100}, ArgumentError, "folder"),
    ],
)
def test_refusals_write_nothing(
    options: dict[str, Any], error: type[Exception], words: str, saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        convert_checkpoint(saved, tmp_path / "b.safetensors", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pt"}


def test_two_tensors_never_get_one_name(tmp_path: Path) -> None:
    twins = tk.Checkpoint.from_state_dict({"a.weight": torch.ones(2), "b.weight": torch.zeros(2)})
    with pytest.raises(ArgumentError, match="one name to several"):
        convert_checkpoint(twins, tmp_path / "b.safetensors", rename=lambda name: "x")


def test_values_that_overflow_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    large = tk.Checkpoint.from_state_dict({"a.weight": torch.ones(2), "b.weight": torch.tensor([1e6, 1.0])})
    with pytest.raises(CheckpointError, match=r"b\.weight"):
        convert_checkpoint(large, tmp_path / "out", dtype=torch.float16, max_shard_size=4)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(CheckpointError, match="complex128"):
        wide = tk.Checkpoint.from_state_dict({"a.b": torch.ones(2, dtype=torch.complex128)})
        convert_checkpoint(wide, tmp_path / "c.safetensors")


def test_shared_tensors_are_written_once_and_shared_again(tmp_path: Path) -> None:
    tied = torch.randn(3, 2)
    source = tk.Checkpoint.from_state_dict(
        {"embed.weight": tied, "norm.weight": torch.ones(2), "head.weight": tied}
    )
    for destination, options in ((tmp_path / "a.safetensors", {}), (tmp_path / "out", {"max_shard_size": 8})):
        made = convert_checkpoint(source, destination, **options)  # type: ignore[arg-type]
        again = tk.read_checkpoint(destination)
        assert made.tensors == 2 and again.shared == (("embed.weight", "head.weight"),) == made.shared
        assert torch.equal(again["head"].tensors["weight"], tied)


def test_what_is_there_is_not_written_over(saved: Path, tmp_path: Path) -> None:
    convert_checkpoint(saved, tmp_path / "out")
    for destination in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        with pytest.raises(OutputError, match="is there already"):
            convert_checkpoint(saved, destination)


def test_a_file_that_reads_back_otherwise_is_removed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.mapped_tensors
    monkeypatch.setattr(
        module, "mapped_tensors", lambda path: ({k: t + 1 for k, t in real(path)[0].items()}, {})
    )
    with pytest.raises(OutputError, match="does not hold what was written"):
        convert_checkpoint(saved, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


_CHILD = """
import sys, time
from transferkit.checkpoints import _converting as module
real, count = module._compare, [0]
def compare(path, values):
    real(path, values); count[0] += 1
    if count[0] == int(sys.argv[3]): print("now", flush=True); time.sleep(60)
module._compare = compare
module.convert_checkpoint(sys.argv[1], sys.argv[2], max_shard_size=150)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL here")
@pytest.mark.parametrize("after", [1, 2])
def test_what_a_kill_leaves_is_not_read_as_whole(after: int, saved: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CHILD, str(saved), str(tmp_path / "out"), str(after)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"now\n"
        child.send_signal(signal.SIGKILL)
    with pytest.raises(CheckpointError, match="shards are missing"):
        tk.read_checkpoint(tmp_path / "out")


def test_the_command_converts_a_sharded_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.safetensors"
    arguments = ["convert", str(DCP), str(out), "--exclude", "1", "--rename", "fc=0", "--dtype", "float64"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "3 tensors" in printed and "the optimizer's state is left out" in printed
    assert set(load_file(out)) == {"fc.weight", "fc.bias", "2.columns"}
    assert main(arguments) == 2
    assert "is there already" in capsys.readouterr().err
