"""The neon files of three versions, moved onto torch models written by hand, compute what neon computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transferkit.checkpoints import Checkpoint, read_checkpoint

TOLERANCE = 1e-5


def mini_alexnet() -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Conv2d(3, 24, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0),
        ),
        *(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Flatten(), nn.Linear(288, 64), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(64, 20), nn.Softmax(dim=1)),
    )


def cifar_conv_bn() -> nn.Sequential:
    norm = {"eps": 1e-3, "momentum": 0.1}
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, bias=False), nn.BatchNorm2d(16, **norm), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5, bias=False), nn.BatchNorm2d(32, **norm), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(800, 100, bias=False), nn.BatchNorm1d(100, **norm), nn.ReLU()),
        *(nn.Linear(100, 20, bias=False), nn.Softmax(dim=1)),
    )


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 20), nn.Softmax(dim=1))


NETWORKS = {
    "mini_alexnet_1.2.2": (mini_alexnet, (3, 32, 32)),
    "cifar_conv_bn_1.9.0": (cifar_conv_bn, (3, 32, 32)),
    "mlp_2.6.0": (mlp, (1, 32, 32)),
}


def loaded(network: nn.Sequential, checkpoint: Checkpoint) -> nn.Sequential:
    """Copy layer by layer in order, strictly."""
    modules = [module for module in network if module.state_dict()]
    for module, layer in zip(modules, checkpoint, strict=True):
        module.load_state_dict(dict(layer.tensors), strict=True)
    return network.eval()


def reference(shared: Path, name: str) -> tuple[Tensor, Tensor]:
    with np.load(shared / "neon" / f"{name}_reference.npz") as arrays:
        return torch.from_numpy(arrays["input"]), torch.from_numpy(arrays["outputs"])


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_neons(shared: Path, name: str) -> None:
    make, shape = NETWORKS[name]
    network = loaded(make(), read_checkpoint(shared / "neon" / f"{name}.prm"))
    pixels, wanted = reference(shared, name)
    with torch.no_grad():
        outputs = network(pixels.reshape(-1, *shape))
    assert (outputs - wanted).abs().max() <= TOLERANCE


def test_every_file_of_the_folder_is_held_to_its_outputs(shared: Path) -> None:
    assert {path.stem for path in (shared / "neon").glob("*.prm")} == set(NETWORKS)


def test_without_folding_the_dropout_factor_is_missing(shared: Path) -> None:
    path = shared / "neon/mini_alexnet_1.2.2.prm"
    folded, raw = read_checkpoint(path), read_checkpoint(path, fold_dropout=False)
    assert torch.equal(folded["fc8"].tensors["weight"], raw["fc8"].tensors["weight"] * 0.5)
    assert torch.equal(folded["fc8"].tensors["bias"], raw["fc8"].tensors["bias"])
    pixels, wanted = reference(shared, "mini_alexnet_1.2.2")
    with torch.no_grad():
        outputs = loaded(mini_alexnet(), raw)(pixels.reshape(-1, 3, 32, 32))
    assert (outputs - wanted).abs().max() > 1e-2
    assert "fc8 x 0.5" in raw.notes[0]
