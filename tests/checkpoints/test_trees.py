"""Arrays at any depth, in any container and any file around it, are read under dotted names, and none is lost."""

from __future__ import annotations

import collections
import gzip
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.checkpoints.hostile_files import plain_tar
from transferkit.checkpoints import read_checkpoint
from transferkit.errors import CheckpointError

PLAIN = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}
NAMES = st.text("abcxyz_", min_size=1, max_size=4)
SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)
TREES = st.recursive(
    st.builds(
        lambda shape, seed: np.random.default_rng(seed).standard_normal(shape), SHAPES, st.integers(0, 99)
    )
    | st.sampled_from([1, 2.5, "text", None, True]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=12,
)


def arrays_in(value: Any, name: str = "") -> dict[str, np.ndarray]:
    if isinstance(value, np.ndarray):
        return {name: value}
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    return {key: array for part, item in items for key, array in arrays_in(item, f"{name}.{part}").items()}


def write(value: Any, how: str, folder: Path) -> Path:
    """Write a value as people do; return the file."""
    path = folder / "weights"
    content = pickle.dumps(value, 4)
    if how == "torch":
        torch.save(value, path)
    elif how == "npy":
        np.save(folder / "w.npy", np.array(value, dtype=object))
        path = folder / "w.npy"
    elif how.startswith("joblib"):
        joblib.dump(value, path, compress=how.endswith("zlib"))
    else:
        packed = {
            "gzip": lambda: gzip.compress(content),
            "zlib": lambda: zlib.compress(content),
            "tar": lambda: plain_tar({"readme.txt": b"hello", "a/w.pkl": content}),
            "tar.gz": lambda: gzip.compress(plain_tar({"w.pkl": content})),
            "zip": lambda: zipped({"a/w.pkl": content, "notes.md": b"# hello"}),
        }
        path.write_bytes(packed[how]() if how in packed else pickle.dumps(value, int(how)))
    return path


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@settings(deadline=None, max_examples=60)
@given(TREES)
def test_every_array_of_a_tree_is_there_under_its_own_name(value: Any) -> None:
    tree = {"tree": value, "last": np.ones(2)}  # two of them, so that nothing is the one place
    found = read_checkpoint({**tree}).state_dict()
    wanted = {name[1:]: array for name, array in arrays_in(tree).items()}
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name].numpy(), array) for name, array in wanted.items())


TREE = {
    "net": {
        "out": {"L": {"W": np.ones((3, 1))}},
        "steps": [np.zeros(2), {"b": np.arange(3)}],
        "log_std": np.ones(3),
    },
    "filter": (np.full(2, 7.0), "text", None, collections.OrderedDict(mean=np.ones(2))),
    7: np.ones((1, 2), ">f4"),
}
FILES = ["0", "2", "5", "torch", "npy", "joblib", "joblib zlib", "gzip", "zlib", "tar", "tar.gz", "zip"]


@pytest.mark.parametrize("how", FILES)
def test_a_tree_is_the_same_in_every_file(how: str, tmp_path: Path) -> None:
    wanted = {name[1:]: array for name, array in arrays_in(TREE).items()}
    path = write(TREE, how, tmp_path)
    checkpoint = read_checkpoint(path)
    found = checkpoint.state_dict()
    assert list(found) == list(wanted)
    assert all(np.array_equal(found[name].numpy(), array) for name, array in wanted.items())
    assert checkpoint.metadata["filter.1"] == "text"
    assert list(read_checkpoint(path, key="net.steps").state_dict()) == ["0", "1.b"]
    assert all(tensor.is_contiguous() for tensor in found.values())
    if how in ("tar", "zip"):
        assert any(note.startswith("left out of the archive: ") for note in checkpoint.notes)


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ([torch.ones(2), torch.ones(3)], ["0", "1"]),
        (torch.ones(3), ["tensor"]),
        ({"log_std": torch.zeros(3), "body": PLAIN}, ["log_std", "body.fc.weight", "body.fc.bias"]),
        ({"params": {"Dense_0": {"kernel": torch.ones(2, 3)}}}, ["Dense_0.kernel"]),
        (
            {"params": {"a": {"w": torch.ones(2)}}, "batch_stats": {"a": {"mean": torch.ones(2)}}},
            ["params.a.w", "batch_stats.a.mean"],
        ),
        ({"conv": {"weight": torch.ones(2, 2)}}, ["conv.weight"]),
        ([PLAIN], ["fc.weight", "fc.bias"]),
        ({"a": {"b": torch.ones(1), ("c", 2): torch.ones(1)}, "d": [torch.ones(1)]}, ["a.b", "a.c.2", "d.0"]),
    ],
)
def test_whatever_has_no_one_place_is_read_as_a_whole(saved: Any, names: list[str], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "x.pt")
    assert list(read_checkpoint(tmp_path / "x.pt").state_dict()) == names


def test_what_is_not_taken_is_named_and_reachable() -> None:
    saved = {"state_dict": PLAIN, "normalizer": {"mean": torch.ones(2)}, "log_std": torch.zeros(3)}
    saved["deep"] = {"a": {"b": [{"c": torch.ones(2)}]}}
    note = read_checkpoint(saved).notes[0]
    for key in ("normalizer", "log_std", "deep"):
        assert f"key={key!r}" in note
        assert read_checkpoint(saved, key=key).state_dict()
    everything = read_checkpoint(saved, key="").state_dict()
    assert {"state_dict.fc.weight", "normalizer.mean", "log_std", "deep.a.b.0.c"} <= everything.keys()
    assert read_checkpoint({"state_dict": PLAIN, "normalizer": {"mean": torch.tensor(1.0)}}).metadata == {
        "normalizer.mean": 1.0
    }


def test_an_optimizer_is_no_model_unless_there_is_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    alone = read_checkpoint(optimizer.state_dict())
    assert "state.0.exp_avg" in alone.state_dict() and "the state of an optimizer" in alone.notes[0]
    both = {
        "actor": model.state_dict(),
        "critic": model.state_dict(),
        "actor_optimizer": optimizer.state_dict(),
    }
    checkpoint = read_checkpoint(both)
    assert checkpoint.names == ("actor.0", "critic.0")
    assert "key='actor_optimizer'" in checkpoint.notes[0]
    assert "state.0.exp_avg" in read_checkpoint(both, key="actor_optimizer").state_dict()


def test_two_parts_of_one_name_are_refused() -> None:
    for saved in (
        {"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)},
        {1: torch.ones(1), "1": torch.ones(1)},
        {"": {"a": torch.ones(1)}, "a": torch.ones(1)},
    ):
        with pytest.raises(CheckpointError, match="two of its parts are called"):
            read_checkpoint(saved)


def test_a_dict_that_holds_itself_is_read_once() -> None:
    saved: dict[str, Any] = {"w": torch.ones(2)}
    saved["me"] = saved
    assert list(read_checkpoint(saved).state_dict()) == ["w"]


def test_tensors_in_a_plain_pickle_have_torchs_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    saved = {"a": base, "t": base.T, "row": base[1], "half": base.half(), "p": nn.Parameter(base)}
    for protocol in range(6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(saved, protocol))
        found = read_checkpoint(tmp_path / "x.pkl").state_dict()
        assert list(found) == list(saved)
        assert all(torch.equal(found[key], value.detach()) for key, value in saved.items())


def sb3(path: Path, policy: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"n_steps": 5, "policy_class": {":serialized:": "gASV"}}))
        for name, value in {
            "policy.pth": policy,
            "policy.optimizer.pth": optimizer,
            "pytorch_variables.pth": None,
        }.items():
            with archive.open(name, "w", force_zip64=True) as file:
                torch.save(value, file)
        archive.writestr("_stable_baselines3_version", "2.3.2")


@pytest.mark.parametrize("name", ["ppo.zip", "ppo.pkl", "ppo.safetensors"])
def test_the_policy_of_stable_baselines3_with_its_optimizer(name: str, tmp_path: Path) -> None:
    policy = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.Adam(policy.parameters())
    policy(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    sb3(tmp_path / name, policy.state_dict(), optimizer.state_dict())
    checkpoint = read_checkpoint(tmp_path / name)
    assert checkpoint.format == "stable-baselines3" and checkpoint.names == ("0",)
    assert checkpoint.metadata == {"data.n_steps": 5, "stable_baselines3_version": "2.3.2"}
    assert checkpoint["0"].states["weight"]["step"] == 1


def test_several_files_of_an_archive_are_read_under_their_names(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(PLAIN, buffer)
    path = tmp_path / "x.zip"
    path.write_bytes(zipped({"actor.pt": buffer.getvalue(), "run/critic.pt": buffer.getvalue(), "a.txt": b"?"}))
    assert read_checkpoint(path).names == ("actor.fc", "run.critic.fc")
    assert read_checkpoint(path, key="run.critic").names == ("fc",)
    path.write_bytes(zipped({"a.pt": buffer.getvalue(), "a.pth": buffer.getvalue()}))
    assert read_checkpoint(path).names == ("a.pt.fc", "a.pth.fc")
    path.write_bytes(zipped({"a.txt": b"?"}))
    with pytest.raises(CheckpointError, match=r"an archive of 1 files, none of which is read: a\.txt"):
        read_checkpoint(path)


def test_links_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.pkl").write_bytes(pickle.dumps({"w": np.ones(2)}))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            header = tarfile.TarInfo("w.pkl")
            header.type, header.linkname = kind, str(tmp_path / "secret.pkl")
            archive.addfile(header)
        with pytest.raises(CheckpointError, match="archive of 0 files"):
            read_checkpoint(tmp_path / "x.tar")
    escaping = plain_tar({"../../escaped.pkl": pickle.dumps({"w": np.ones(2)})})
    (tmp_path / "x.tar").write_bytes(escaping)
    assert list(read_checkpoint(tmp_path / "x.tar").state_dict()) == ["w"]
    assert not list(tmp_path.parent.glob("**/escaped*"))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pkl", ".npy", ".pt", ".zip"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Not found", "a web page"),
        (b"", "the file is empty"),
        (b"PK\x03\x04 and no more", "a damaged zip archive"),
    ],
)
def test_content_comes_before_the_suffix(content: bytes, told: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"model{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(tmp_path / f"model{suffix}")
