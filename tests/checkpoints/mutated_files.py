"""Damage files of every format at random, and see that reading them ends in a checkpoint or a ``CheckpointError``.

The tests run some hundreds; all 20,000 are run by ``python -m tests.checkpoints.mutated_files --count 20000``.
"""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from tests.checkpoints.hostile_files import torch_tar_of
from transferkit.checkpoints import read_checkpoint
from transferkit.errors import CheckpointError

SECONDS = 5


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
        "index": (
            ".index.json",
            b'{"metadata": {}, "weight_map": {"a.weight": "x.safetensors", "b.bias": "y.bin"}}',
        ),
    }


def torch_bytes(saved: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(saved, buffer, **options)
    return buffer.getvalue()


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


def mutated_files(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (label, suffix, content) of damaged files, the formats taking turns."""
    files = list(originals().items())
    dice = random.Random(seed)
    for number in range(count):
        label, (suffix, content) = files[number % len(files)]
        _, (_, other) = dice.choice(files)
        yield f"{label} #{number} of seed {seed}", suffix, mutated(content, other, dice)


def outcome(path: Path) -> str:
    """Read a file and everything in it; return what came of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint = read_checkpoint(path)
    except CheckpointError:
        return "refused"
    for layer in checkpoint:
        for tensor in layer.tensors.values():
            tensor.reshape(-1).to(torch.uint8 if tensor.dtype == torch.bool else tensor.dtype).clone()
        for state in layer.states.values():
            for tensor in state.values():
                tensor.clone()
    return "read"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tally: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for label, suffix, content in mutated_files(options.count, options.seed):
            path = Path(folder, f"file{suffix}")
            path.write_bytes(content)
            begun = time.process_time()
            try:
                tally[outcome(path)] += 1
            except Exception as error:
                tally["another error"] += 1
                print(f"{label}: {error!r}")
            seconds = time.process_time() - begun
            slowest = max(slowest, seconds)
            if seconds > SECONDS:
                tally["too slow"] += 1
                print(f"{label}: {seconds:.1f} s")
    print(f"{options.count:,} files: {dict(tally)}; the slowest took {slowest:.2f} s")
    return 1 if tally["another error"] or tally["too slow"] else 0


if __name__ == "__main__":
    sys.exit(main())
