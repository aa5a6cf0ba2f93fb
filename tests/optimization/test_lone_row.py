"""A minibatch of one row: only batch norms that would see single values change, and only for that minibatch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from transferkit.errors import ArgumentError
from transferkit.optimization import lone_row


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(),
        nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2),
    )  # fmt: skip
    for norm in (net[1], net[3], net[5]):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(1, 2)
    return net


def passed(net: nn.Module, inputs: Tensor) -> Tensor:
    torch.manual_seed(1)
    with lone_row(net, inputs):
        found: Tensor = net(inputs)
    return found


def test_starved_norms_take_their_running_statistics_and_all_else_is_as_ever() -> None:
    net, inputs = network(), torch.rand(1, 3, 6, 6)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(inputs)
    net, by_hand = network(), network()
    before = copy.deepcopy(net.state_dict())
    with pytest.warns(UserWarning, match="holds one row only: 3, 5 took their running statistics"):
        found = passed(net, inputs)
    by_hand[3].eval()
    by_hand[5].eval()
    torch.manual_seed(1)
    assert torch.equal(found, by_hand(inputs))  # dropout, and a norm that sees many values, as in training
    for place, changed in ((1, True), (3, False), (5, False)):
        assert torch.equal(net[place].running_mean, before[f"{place}.running_mean"]) != changed
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("rows", [2, 5])
def test_other_minibatches_pass_unchanged(rows: int) -> None:
    net, plain, inputs = network(), network(), torch.rand(rows, 3, 6, 6)
    found = passed(net, inputs)
    torch.manual_seed(1)
    assert torch.equal(found, plain(inputs))


def test_nothing_is_done_where_nothing_would_fail() -> None:
    """Frozen norms in evaluation mode, and networks without any."""
    frozen = network()
    frozen[3].eval()
    frozen[5].eval()
    for net in (frozen, nn.Sequential(nn.Flatten(), nn.Linear(108, 2))):
        modes = [module.training for module in net.modules()]
        passed(net, torch.rand(1, 3, 6, 6))
        assert [module.training for module in net.modules()] == modes


def test_a_norm_without_running_statistics_is_named() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(108, track_running_stats=False))
    with pytest.raises(ArgumentError, match=r"cannot be normalized by 1, which keeps no .*drop_last=True"):
        passed(net, torch.rand(1, 3, 6, 6))
