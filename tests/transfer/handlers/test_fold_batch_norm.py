"""A network without norms computes what the one with norms did."""

from __future__ import annotations

import pytest
import torch
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
        WeightTransfer(source, handlers=["fold_batch_norm"]).apply(target)
