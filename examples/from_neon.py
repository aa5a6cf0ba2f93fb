"""A model file of Nervana's neon onto a torch network, without neon and without running any code from the file.

    python examples/from_neon.py                 a file made here, as neon 2.6 writes them
    python examples/from_neon.py model.prm       any other: its layers, and what there is to know of them

For a network of your own keep the two lines that read and transfer. Without arguments it printed

    neon {'neon_version': '2.6.0'}
      Layer(0, 'fc6', linear: weight [32, 64]) is number 0 in the file
      Layer(1, 'fc7', linear: weight [10, 32]) is number 2 in the file
      note: input weights scaled by the dropout before them (fc7 x 0.5): neon scales by keep when testing, ...
    moved 2 of 2 tensors (100.0%), 2,368 of 2,368 elements (100.0%)
    the same as neon's arithmetic to 1e-4: True
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import transferkit as tk


def write_neon_file(path: Path) -> np.ndarray:
    """Write two fully connected layers as neon 2.6 does; return their product, what the pair computes."""
    dice = np.random.default_rng(0)
    first, second = dice.normal(size=(32, 64)).astype("f4"), dice.normal(size=(10, 32)).astype("f4")
    layers = [
        {"type": "neon.layers.layer.Linear", "config": {"name": "fc6"}, "params": {"W": first}},
        {"type": "neon.layers.layer.Dropout", "config": {"name": "drop", "keep": 0.5}},
        {"type": "neon.layers.layer.Linear", "config": {"name": "fc7"}, "params": {"W": second}},
    ]
    saved = {
        "neon_version": "2.6.0",
        "backend": {"compat_mode": None},
        "model": {"type": "neon.layers.container.Sequential", "container": True, "config": {"layers": layers}},
    }
    path.write_bytes(pickle.dumps(saved, protocol=2))
    return 0.5 * second @ first  # neon multiplies by keep when testing


def describe(checkpoint: tk.Checkpoint) -> None:
    """Print the layers of a file, and what its reader decided that its user may want to know."""
    print(checkpoint.format, dict(checkpoint.metadata))
    for layer in checkpoint:
        print(f"  {layer} is number {layer.raw_index} in the file")
    for note in checkpoint.notes:
        print(f"  note: {note}")


def chain_of(checkpoint: tk.Checkpoint) -> nn.Sequential:
    """Return linear layers of the sizes that the file has, with neon's dropout before the last."""
    linears = [
        nn.Linear(*reversed(layer.shapes["weight"]), bias="bias" in layer.shapes) for layer in checkpoint
    ]
    return nn.Sequential(*linears[:-1], nn.Dropout(0.5), linears[-1])


def main(arguments: list[str]) -> None:
    """Look at a file; move the one that is made here into torch, and compare what the two compute."""
    if arguments:
        describe(tk.read_checkpoint(arguments[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.prm"
        product = write_neon_file(path)
        checkpoint = tk.read_checkpoint(path)
        describe(checkpoint)
        network = chain_of(checkpoint).eval()
        print("moved", tk.WeightTransfer(checkpoint, mapping="order").apply(network).coverage)
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    difference = (network(inputs) - inputs @ torch.from_numpy(product).T).abs().max().item()
    print(f"the same as neon's arithmetic to 1e-4: {difference < 1e-4}")


if __name__ == "__main__":
    main(sys.argv[1:])
