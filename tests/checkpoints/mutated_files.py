"""Damage files of every format at random, whole and inside their archives, and read what comes of it.

The tests run some hundreds; ``python -m tests.benchmarks.fuzz`` runs as many as there is time for, in processes of their
own that are held to their bounds.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import pickletools
import random
import struct
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from tests.checkpoints.hostile_files import called, name, plain_tar, text, torch_tar, torch_tar_of
from tests.checkpoints.protobufs import blob, message, table_of
from transferkit.checkpoints import read_checkpoint
from transferkit.checkpoints._bundles import _block
from transferkit.checkpoints._describe import describe, describe_in_words
from transferkit.checkpoints._protobuf import varint as read_varint
from transferkit.errors import TransferKitError
from transferkit.finetune import Run, read_run
from transferkit.preprocessing import IMAGENET

SECONDS = 5
_FILES = Path(__file__).with_name("files")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def originals() -> dict[str, tuple[str, bytes]]:
    """Return one small good file of each format: suffix and content."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 2, 3, 3)).sum().backward()
    optimizer.step()
    run = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "arch": "net"}
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    tied = {"embed.weight": torch.ones(4, 3), "norm.bias": torch.zeros(3)}
    tied["head.weight"] = tied["embed.weight"]
    neon = neon_model()
    return {
        "torch zip": (".pt", torch_bytes(run)),
        "torch zip, tied": (".bin", torch_bytes(tied)),
        "torch row": (".pth", torch_bytes(run, _use_new_zipfile_serialization=False)),
        "torch tar": (".tar", torch_tar_of({"fc.weight": np.ones((2, 3), "f4"), "fc.bias": np.zeros(2, "f4")})),
        "safetensors": (".safetensors", save_safetensors(model.state_dict(), metadata={"format": "pt"})),
        "npz": (".npz", npz_bytes(np.savez, arrays)),
        "npz, compressed": (".npz", npz_bytes(np.savez_compressed, arrays)),
        "neon": (".prm", pickle.dumps(neon, 2)),
        "neon, text": (".p", pickle.dumps(neon, 0)),
        "neon, newest pickle": (".prm", pickle.dumps(neon, 5)),
        "neon 1.0": (".p", pickle.dumps(neon_first_version(), 2)),
        "neon, gzip": (".prm.gz", gzip.compress(pickle.dumps(neon, 2))),
        "pickle": (".pkl", pickle.dumps({"model": arrays, "epoch": np.float64(3), "lr": {1: 0.1, 2: 0.2}}, 2)),
        "dcp": (DCP, dcp_bytes(*DCP_FILES)),
        "run": (".pt", run_bytes()),
        **foreign(),
        "module zip": (".pt", torch_bytes({"model": model, "args": Namespace(lr=0.1)})),
        "module row": (".pkl", torch_bytes(model, _use_new_zipfile_serialization=False)),
        "module pickle": (".pkl", pickle.dumps([model, Namespace(lr=0.1)], 4)),
        "TorchScript": (".pt", script_bytes(model)),
        "npy": (".npy", npy_bytes({"conv": {"weights": np.ones((2, 3), "f4")}, "names": np.array(["a", "b"])})),
        "joblib": (".joblib", joblib_bytes(arrays)),
        "tar": (".tar", plain_tar({"w.pkl": pickle.dumps(arrays), "a.txt": b"a"})),
        "stable-baselines3": (".zip", sb3_bytes(model, optimizer)),
        "index": (
            ".index.json",
            b'{"metadata": {}, "weight_map": {"a.weight": "x.safetensors", "b.bias": "y.bin"}}',
        ),
    } | of_frameworks()


def of_frameworks() -> dict[str, tuple[str, bytes]]:
    """Return small files that Keras and Flax wrote, of those whose readers' libraries are there."""
    members = {
        "h5py": ("cnn.keras", "text.h5", "cnn.weights.h5"),
        "msgpack": ("nested.msgpack", "bfloat16.npz"),
    }
    found = {}
    for (library, names), archive in zip(members.items(), ("keras.zip", "flax.zip"), strict=True):
        if find_spec(library):
            with zipfile.ZipFile(Path(__file__).parent / "files" / archive) as files:
                found |= {name: (name[name.index(".") :], files.read(name)) for name in names}
    return found


def foreign() -> dict[str, tuple[str, bytes]]:
    """Return files of other frameworks."""
    ones = np.ones((2, 3, 1, 1))
    layers = [
        ("c", "Convolution", ones, ones),
        ("b", "BatchNorm", ones, ones, ones),
        ("s", "Scale", ones, ones),
    ]
    net = [message({1: name, 2: kind, 3: "x", 4: "x", 7: list(map(blob, own))}) for name, kind, *own in layers]
    return {
        "onnx of torch's script": (".onnx", (_FILES / "words_script.onnx").read_bytes()),
        "onnx of torch's export": (".onnx", (_FILES / "sight_dynamo.onnx").read_bytes()),
        "caffe": (".caffemodel", message({1: "net", 100: net})),
        "tensorflow": (".index", (_FILES / "named.index").read_bytes()),
    }


def write_beside(path: Path) -> None:
    """Write what a file needs beside it: the data that TensorFlow's index tells of."""
    path.with_name(f"{path.stem}.data-00000-of-00001").write_bytes(
        (_FILES / "named.data-00000-of-00001").read_bytes()
    )


def script_bytes(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


def npy_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(value, dtype=object))
    return buffer.getvalue()


def joblib_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer)
    return buffer.getvalue()


def sb3_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", json.dumps({"n_steps": 5}))
        archive.writestr("policy.pth", torch_bytes(model.state_dict()))
        archive.writestr("policy.optimizer.pth", torch_bytes(optimizer.state_dict()))
    return buffer.getvalue()


def torch_bytes(saved: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(saved, buffer, **options)
    return buffer.getvalue()


DCP = ".dcp"  # a folder of torch.distributed.checkpoint, its files one after the other
_SAVED = Path(__file__).parent / "files" / "dcp_2_ranks"
_NAMES = (".metadata", "__0_0.distcp", "__1_0.distcp")
DCP_FILES = [(_SAVED / name).read_bytes() for name in _NAMES]


def dcp_bytes(*files: bytes) -> bytes:
    return struct.pack("<3I", *map(len, files)) + b"".join(files)


def dcp_folder(packed: Path) -> Path:
    """Return a folder of the files in one that :func:`dcp_bytes` made, damaged or not."""
    content = packed.read_bytes().ljust(12, b"\0")
    place, folder = 12, packed.with_suffix(".folder")
    folder.mkdir(exist_ok=True)
    for file, length in zip(_NAMES, struct.unpack_from("<3I", content), strict=True):
        (folder / file).write_bytes(content[place : place + length])
        place += length
    return folder


def npz_bytes(save: Callable[..., None], arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def neon_model() -> dict[str, Any]:
    def layer(kind: str, name: str, params: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
        made = {"type": f"neon.layers.layer.{kind}", "config": {"name": name, **config}}
        if params:
            made |= {"params": params, "states": [value * 0 for value in params.values()]}
        return made

    ones = np.ones
    layers = [
        layer("Convolution", "conv", {"W": ones((18, 3), "f4")}, fshape=(3, 3, 3)),
        layer("Bias", "conv_bias", {"W": ones((3, 1), "f4")}),
        layer("Activation", "relu", transform={"type": "neon.transforms.activation.Rectlin", "config": {}}),
        layer("Dropout", "drop", keep=0.5),
        layer("Linear", "fc", {"W": ones((2, 3), "f4")}),
        layer("BatchNorm", "bn", {key: ones((2, 1), "f4") for key in ("beta", "gamma", "gmean", "gvar")}),
        layer("LSTM", "lstm", {"W": ones((2 + 3 + 1, 12), "f4")}, **gates("Tanh", "Logistic")),
    ]
    return {
        "neon_version": "2.6.0",
        "backend": {"compat_mode": "neon"},
        "epoch_index": 3,
        "optimizer": {
            "type": "neon.optimizers.optimizer.GradientDescentMomentum",
            "config": {"learning_rate": 0.1},
        },
        "model": {"type": "neon.layers.container.Sequential", "container": True, "config": {"layers": layers}},
    }


def gates(activation: str, gate: str) -> dict[str, Any]:
    return {
        "activation": {"type": f"neon.transforms.activation.{activation}", "config": {}},
        "gate_activation": {"type": f"neon.transforms.activation.{gate}", "config": {}},
    }


def neon_first_version() -> dict[str, Any]:
    shapes = [(27, 8), (8, 1), (5, 32), (5, 1)]
    layers = [
        {"params": {"W": np.ones(shape, "f4"), "name": f"layer{n}"}, "states": []}
        for n, shape in enumerate(shapes)
    ]
    return {"layer_params_states": layers, "epoch_index": 1}


def mutated(content: bytes, other: bytes, dice: random.Random) -> bytes:
    """Return a damaged copy: flipped, cut, moved, doubled, or spliced with another file."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        place, length = dice.randrange(len(data) + 1), dice.choice((1, 2, 4, 8, 64, 1024))
        chunk = bytes(data[place : place + length])
        kind = dice.randrange(9)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[place : place + length] = dice.randbytes(len(chunk))
        elif kind == 2:
            data[place : place + length] = bytes([dice.choice((0, 255, 127, 128))]) * len(chunk)
        elif kind == 3:
            del data[place : place + length]
        elif kind == 4:
            del data[place:]
        elif kind == 5:
            data[dice.randrange(len(data) + 1) : 0] = chunk
        elif kind == 6:
            target = dice.randrange(len(data) + 1)
            data[target : target + len(chunk)] = chunk
        elif kind == 7:
            begin = dice.randrange(len(other) + 1)
            data[place : place + length] = other[begin : begin + length]
        elif chunk.isdigit():
            data[place : place + length] = b"9" * len(chunk)
    return bytes(data)


Wrap = Callable[[bytes], bytes]


def insides() -> dict[str, tuple[str, bytes, Wrap]]:
    """Return what lies inside the files: suffix, content, and a function that puts it back, damaged or not."""
    files = originals()
    header, data = _safetensors_parts(files["safetensors"][1])
    found: dict[str, tuple[str, bytes, Wrap]] = {
        "pickle in gzip": (".prm.gz", pickle.dumps(neon_model(), 2), lambda inner: gzip.compress(inner, 1)),
        "header of safetensors": (
            ".safetensors",
            header,
            lambda inner: struct.pack("<Q", len(inner)) + inner + data,
        ),
    }
    block, last = tensorflow_block(files["tensorflow"][1])
    found["block of tensorflow"] = (".index", block, lambda inner: table_of(inner, last))
    for label, member in {
        "torch zip": "data.pkl",
        "torch zip, tied": "data.pkl",
        "run": "data.pkl",
        "module zip": "data.pkl",
        "TorchScript": "data.pkl",
        "stable-baselines3": "policy.pth",
        "npz": ".npy",
        "npz, compressed": ".npy",
    }.items():
        suffix, content = files[label]
        found[f"{member} in {label}"] = (suffix, *_in_zip(content, member))
    metadata, *ranks = DCP_FILES
    found["metadata in dcp"] = (DCP, metadata, lambda inner: dcp_bytes(inner, *ranks))
    parts = torch_tar_parts(files["torch tar"][1])
    for part, inner in parts.items():
        found[f"{part} in torch tar"] = (
            ".tar",
            inner,
            lambda inner, part=part: torch_tar(**{**parts, part: inner}),  # type: ignore[misc]
        )
    return found


def tensorflow_block(content: bytes) -> tuple[bytes, bytes]:
    """Return the entries of an index of one block, and its last key."""
    raw, place = memoryview(content), len(content) - 48
    for _ in range(2):
        _, place = read_varint(raw, place)
    ((_, handle),) = _block(raw, raw, place)
    size, _ = read_varint(handle, 1)
    restarts = int.from_bytes(raw[size - 4 : size], "little")
    return content[: size - 4 - 4 * restarts], list(_block(raw, handle, 0))[-1][0]


def _safetensors_parts(content: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(content[:8], "little")
    return content[8 : 8 + length], content[8 + length :]


def _in_zip(content: bytes, ending: str) -> tuple[bytes, Wrap]:
    """Return the first member whose name ends so, and a function that builds the archive anew with another."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    place = next(place for place, (member, _) in enumerate(members) if member.filename.endswith(ending))

    def wrap(inner: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, (member, own) in enumerate(members):
                archive.writestr(member.filename, inner if number == place else own, member.compress_type)
        return buffer.getvalue()

    return members[place][1], wrap


def torch_tar_parts(content: bytes) -> dict[str, bytes]:
    """Return the parts of torch's tar archive under the names of ``torch_tar``'s arguments."""
    parts, place = {}, 0
    for part in ("storages", "tensors", "saved"):
        size = int(content[place + 124 : place + 135], 8)
        parts[part] = content[place + 512 : place + 512 + size]
        place += 512 + -(-size // 512) * 512
    return parts


def run_bytes() -> bytes:
    """Return a small run, as it is saved."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 2, 3, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return torch_bytes(
        Run(model, optimizer, schedule, IMAGENET, {"network": "alexnet", "scale": 2}).state_dict()
    )


# What may stand in a pickle that was not written by who it seems: calls, numbers at the edge, things named again.
_INSERTED = (
    called(name("os", "system"), text("touch canary")),
    called(name("builtins", "eval"), text("open('canary', 'w')")),
    called(name("builtins", "bytearray"), b"\x8a\x05\x00\x5e\xd0\xb2\x00"),
    called(name("torch", "FloatTensor"), b"J\x00\xca\x9a\x3b"),
    name("collections", "OrderedDict") + b")R",
    *(
        b"J\xff\xff\xff\x7f",
        b"J\x00\x00\x00\x80",
        b"\x8a\x08" + b"\xff" * 7 + b"\x1f",
        b"K\x00",
        b"N",
        b"}",
        b"]",
    ),
    *(
        b")",
        b"(",
        b"0",
        b"2",
        b"R",
        b"b",
        b"Q",
        b"\x81",
        b"\x93",
        b"\x94",
        b"h\x00",
        b"h\x01",
        b"h\x02",
        b"h\x05",
        b"s",
        b"a",
    ),
)


def rearranged(content: bytes, dice: random.Random) -> bytes:
    """Return a pickle with instructions left out, moved, doubled, repeated a thousand times or put in."""
    try:
        places = [place for _, _, place in pickletools.genops(content)]
    except ValueError:
        return content
    steps = [content[begin:end] for begin, end in zip(places, [*places[1:], len(content)], strict=True)]
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        if len(steps) < 2:
            break
        place, other = dice.randrange(1, len(steps)), dice.randrange(1, len(steps))
        kind = dice.randrange(5)
        if kind == 0:
            del steps[place : place + dice.choice((1, 1, 3))]
        elif kind == 1:
            steps[place:place] = steps[other : other + dice.choice((1, 2, 8))]
        elif kind == 2:
            steps[place], steps[other] = steps[other], steps[place]
        elif kind == 3:
            steps[place:place] = [dice.choice(_INSERTED)]
        else:
            steps[place:place] = steps[place : place + dice.choice((1, 2, 4))] * dice.choice((10, 1000))
    return b"".join(steps)


def families() -> dict[str, Callable[[random.Random], tuple[str, bytes]]]:
    """Return what makes one damaged file (suffix, content) of each format, and of what is inside each archive."""
    files, inner = originals(), insides()
    contents = [content for _, content in files.values()] + [content for _, content, _ in inner.values()]

    def whole(suffix: str, content: bytes, dice: random.Random) -> tuple[str, bytes]:
        return suffix, mutated(content, dice.choice(contents), dice)

    def inside(suffix: str, content: bytes, wrap: Wrap, dice: random.Random) -> tuple[str, bytes]:
        is_pickle = content[:1] == b"\x80" and dice.random() < 0.7
        return suffix, wrap(
            rearranged(content, dice) if is_pickle else mutated(content, dice.choice(contents), dice)
        )

    return {label: partial(whole, *file) for label, file in files.items()} | {
        label: partial(inside, *file) for label, file in inner.items()
    }


def mutated_files(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (label, suffix, content) of damaged files, the formats taking turns."""
    makers = list(families().items())
    for number in range(count):
        label, make = makers[number % len(makers)]
        yield f"{label} #{number} of seed {seed}", *make(random.Random(f"{seed} {number}"))


def outcome(path: Path, *, run: bool = False) -> str:
    """Read a file and everything in it; return what came of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if run:
                return str(read_run(path) and "read")
            checkpoint = read_checkpoint(dcp_folder(path) if path.suffix == DCP else path)
        for layer in checkpoint:
            for tensor in layer.tensors.values():
                tensor.reshape(-1).to(torch.uint8 if tensor.dtype == torch.bool else tensor.dtype).clone()
            for state in layer.states.values():
                for value in state.values():
                    torch.as_tensor(value).clone() if isinstance(value, torch.Tensor) else value
    except TransferKitError:  # some files tell only when a tensor is used
        return "refused"
    str(checkpoint)
    describe_in_words(describe(checkpoint))
    json.dumps(describe(checkpoint), default=str)
    return "read"
