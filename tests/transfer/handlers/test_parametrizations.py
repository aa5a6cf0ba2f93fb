"""Weights stored in parts on either side compute the same."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from transferkit.errors import HandlerError, TransferError
from transferkit.transfer import WeightTransfer


def old_weight_norm(module: nn.Module, dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module, dim=dim)


FORMS = {
    "plain": lambda module: module,
    "old": old_weight_norm,
    "new": parametrizations.weight_norm,
    "whole": lambda module: parametrizations.weight_norm(module, dim=None),
}


def trained(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter))
    return module


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.Conv2d(4, 3, 3), lambda: nn.Linear(4, 1)])
@pytest.mark.parametrize("target_form", FORMS)
@pytest.mark.parametrize("source_form", FORMS)
def test_same_function_in_every_form(source_form, target_form, make):
    source, target = trained(FORMS[source_form](make())), FORMS[target_form](make())
    handlers = [] if source_form == target_form else ["parametrizations"]
    WeightTransfer(source, handlers=handlers).apply(target)
    data = torch.randn(2, 4) if isinstance(source, nn.Linear) else torch.randn(2, 4, 5, 5)
    assert torch.allclose(source(data), target(data), atol=1e-5)


def test_orthogonal_takes_an_orthogonal_weight():
    source = nn.Linear(4, 4)
    nn.init.orthogonal_(source.weight)
    target = parametrizations.orthogonal(nn.Linear(4, 4))
    WeightTransfer(source, handlers=["parametrizations"]).apply(target)
    assert torch.allclose(target.weight, source.weight, atol=1e-5)


def test_a_weight_that_cannot_be_represented_is_refused():
    target = parametrizations.spectral_norm(nn.Linear(4, 4))
    old = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(HandlerError, match="cannot represent this weight"):
        WeightTransfer(trained(nn.Linear(4, 4)), handlers=["parametrizations"]).apply(target)
    assert all(torch.equal(value, old[key]) for key, value in target.state_dict().items())


def test_without_the_handler_it_is_missing_and_the_handler_is_named():
    source = nn.Linear(4, 3)
    with pytest.raises(TransferError, match=r"original0(?s:.*)handler 'parametrizations' would make it fit"):
        WeightTransfer(source).apply(parametrizations.weight_norm(nn.Linear(4, 3)))
    model = parametrizations.weight_norm(nn.Linear(4, 3))
    report = WeightTransfer(copy.deepcopy(model).state_dict()).apply(model)
    assert report.copied == ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")


class Product(nn.Module):
    """A weight of rank one, stored as its two factors."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :1], weight[:1]


@pytest.mark.parametrize("live", [True, False])
def test_two_parts_of_another_parametrization_are_not_taken_for_weight_norm(live):
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(source, "weight", Product())
    with pytest.raises(TransferError, match="missing"):
        WeightTransfer(source if live else source.state_dict(), handlers=["parametrizations"]).apply(target)


@pytest.mark.parametrize("shape", [(5,), (5, 5), (1, 1, 5)])
def test_a_gate_and_a_value_are_not_taken_for_weight_norm(shape):
    def layer(more: int) -> nn.Module:
        module = nn.Module()
        for name in ("mix_g", "mix_v"):
            module.register_parameter(name, nn.Parameter(torch.randn(shape)))
        module.register_parameter("wide", nn.Parameter(torch.randn(more)))
        return module

    with pytest.raises(TransferError, match="mismatched: 1 tensor of 1 layer"):
        WeightTransfer(layer(3), handlers=["parametrizations"]).apply(layer(4))
