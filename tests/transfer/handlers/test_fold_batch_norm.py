"""A network without norms computes what the one with norms did."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transferkit.errors import HandlerError, TransferError
from transferkit.transfer import WeightTransfer
from transferkit.transfer.handlers import FoldBatchNorm


def with_norms(eps: float = 1e-3) -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=eps), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2), nn.BatchNorm2d(4, eps=eps), nn.Flatten(),
        nn.Linear(4 * 7 * 7, 5), nn.BatchNorm1d(5, eps=eps, affine=False),
    )  # fmt: skip
    for _ in range(4):
        model(torch.randn(8, 3, 8, 8) * 2 + 1)
    return model.eval()


def without() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Identity(), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2), nn.Identity(), nn.Flatten(),
        nn.Linear(4 * 7 * 7, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("from_file", [False, True])
def test_same_function(from_file):
    source, target = with_norms(), without()
    handler = FoldBatchNorm(eps=1e-3) if from_file else "fold_batch_norm"
    report = WeightTransfer(source.state_dict() if from_file else source, handlers=[handler]).apply(target)
    image = torch.randn(2, 3, 8, 8)
    assert torch.allclose(target(image), source(image), atol=1e-5)
    assert report.adapted == ("0.weight", "0.bias", "3.weight", "3.bias", "6.weight", "6.bias")
    assert report.unexpected == ()
    used = {side.key for entry in report.entries for side in entry.sources}
    assert used == set(source.state_dict())


def test_a_file_does_not_tell_eps():
    with pytest.raises(HandlerError, match="a file does not hold the norm's eps"):
        WeightTransfer(with_norms().state_dict(), handlers=["fold_batch_norm"]).apply(without())


def test_a_target_without_bias_cannot_take_the_shift():
    target = without()
    target[0] = nn.Conv2d(3, 6, 3, bias=False)
    with pytest.raises(HandlerError, match="needs a bias"):
        WeightTransfer(with_norms(), handlers=["fold_batch_norm"]).apply(target)


def test_norms_that_the_target_has_are_not_folded():
    with pytest.raises(TransferError, match="had nothing to convert"):
        WeightTransfer(with_norms(), handlers=["fold_batch_norm"]).apply(with_norms())
    renamed = nn.ModuleDict({"conv": nn.Conv2d(3, 6, 3), "norm": nn.BatchNorm2d(6)})
    with pytest.raises(TransferError, match="had nothing to convert"):
        WeightTransfer(
            with_norms()[:2],
            mapping={"conv": "0", "norm": "1"},
            handlers=["fold_batch_norm"],
            allow_missing="*",
        ).apply(renamed)


def test_norms_of_another_container_are_not_folded():
    source = nn.ModuleDict({"a": nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1)}), "norm": nn.BatchNorm2d(3)})
    target = nn.ModuleDict({"a": nn.ModuleDict({"conv": nn.Conv2d(3, 3, 1)})})
    with pytest.raises(TransferError, match="had nothing to convert"):
        WeightTransfer(source.state_dict(), handlers=["fold_batch_norm"]).apply(target)


class Block(nn.Module):
    """Two convolutions and two norms, defined in one order and used in another."""

    def __init__(self, order: str, used: str, norms: bool = True) -> None:
        super().__init__()
        for name in order.split():
            if norms or name.startswith("conv"):
                setattr(self, name, nn.Conv2d(4, 4, 1) if name.startswith("conv") else nn.BatchNorm2d(4))
        self.used = used.split()

    def forward(self, x):
        for name in self.used:
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return torch.relu(x)


AFTER = "conv1 bn1 conv2 bn2"


def shaken(order: str, used: str = AFTER) -> Block:
    torch.manual_seed(1)
    block = Block(order, used)
    for _ in range(3):
        block(torch.randn(5, 4, 3, 3) * 3 + 1)
    return block.eval()


@pytest.mark.parametrize("order", [AFTER, "conv1 conv2 bn1 bn2", "bn2 bn1 conv2 conv1"])
def test_a_live_source_is_folded_as_its_data_flow(order):
    source, target = shaken(order), Block(AFTER, AFTER, norms=False).eval()
    WeightTransfer(source, handlers=["fold_batch_norm"]).apply(target)
    pixels = torch.randn(2, 4, 3, 3)
    assert torch.allclose(target(pixels), source(pixels), atol=1e-5)


def test_a_norm_before_its_convolution_is_not_folded_into_it():
    source, target = shaken("conv1 bn1", "bn1 conv1"), Block("conv1", "conv1", norms=False)
    with pytest.raises(TransferError, match="had nothing to convert"):
        WeightTransfer(source, handlers=["fold_batch_norm"]).apply(target)


def test_what_neither_a_file_nor_the_forward_method_tells_is_asked_for():
    source, target = shaken("conv1 conv2 bn1 bn2"), Block(AFTER, AFTER, norms=False).eval()
    with pytest.raises(HandlerError, match=r"which norm follows which of conv1, conv2, bn1, bn2; say it"):
        WeightTransfer(source.state_dict(), handlers=[FoldBatchNorm(eps=1e-5)]).apply(target)
    told = FoldBatchNorm(eps=1e-5, pairs={"conv1": "bn1", "conv2": "bn2"})
    WeightTransfer(source.state_dict(), handlers=[told]).apply(target)
    pixels = torch.randn(2, 4, 3, 3)
    assert torch.allclose(target(pixels), source(pixels), atol=1e-5)
    with pytest.raises(HandlerError, match=r"ModuleDict does not tell which norm .* torch.fx"):
        WeightTransfer(
            nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4)}), handlers=["fold_batch_norm"]
        ).apply(nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)}))


def test_a_file_without_order_tells_only_of_a_lone_pair(tmp_path):
    source, target = shaken(AFTER), Block(AFTER, AFTER, norms=False).eval()
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(HandlerError, match="the file does not tell which norm"):
        WeightTransfer(tmp_path / "net.safetensors", handlers=[FoldBatchNorm(eps=1e-5)]).apply(target)
    save_file({key: t for key, t in source.state_dict().items() if "1" in key}, tmp_path / "net.safetensors")
    WeightTransfer(
        tmp_path / "net.safetensors", handlers=[FoldBatchNorm(eps=1e-5)], allow_missing="conv2"
    ).apply(target)
    pixels = torch.randn(2, 4, 3, 3)
    assert torch.allclose(target.conv1(pixels), source.bn1(source.conv1(pixels)), atol=1e-5)
