"""Frozen layers learn nothing, and it survives training mode, copies, pickles and reloads."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from transferkit.transfer import WeightTransfer, before, by_kind, by_name, freeze, frozen_layers, unfreeze


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def built() -> nn.Sequential:
    model = net()
    model(torch.randn(2, 3, 8, 8))
    return model


def train_a_step(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 8, 8) * 5 + 2).square().sum().backward()
    optimizer.step()


def state(model: nn.Module, *prefixes: str) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith(prefixes)}


def test_frozen_norm_keeps_its_statistics_in_training_mode():
    for prepare in (lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        model = built()
        assert freeze(model, before("4")) == ("0", "1")
        model = prepare(model)
        old = state(model, "0", "1")
        head = state(model, "4")
        train_a_step(model)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in old.items())
        assert not all(torch.equal(model.state_dict()[key], value) for key, value in head.items())
        assert frozen_layers(model) == ("0", "1")


def test_unfreeze_undoes():
    model = built()
    freeze(model)
    model.train()
    assert frozen_layers(model) == ("0", "1", "4")
    assert unfreeze(model, by_kind("norm")) == ("1",)
    assert model[1].training
    assert frozen_layers(model) == ("0", "4")
    old = state(model, "1")
    train_a_step(model)
    assert not torch.equal(model.state_dict()["1.running_mean"], old["1.running_mean"])


def test_freezing_survives_a_reload():
    model, again = built(), built()
    names = freeze(model, before("4"))
    saved = {"model": model.state_dict(), "frozen": list(names)}
    WeightTransfer(saved["model"]).apply(again)
    freeze(again, by_name(*saved["frozen"]))
    assert frozen_layers(again) == frozen_layers(model)


def test_parameter_groups_hold_each_trainable_parameter_once():
    donor, model = built(), built()
    report = WeightTransfer(donor, select=before("4")).apply(model)
    freeze(model, by_name("0"))
    groups = report.parameter_groups(
        model, transferred={"lr": 1e-5}, new={"lr": 1e-3, "weight_decay": 0.1}, decay_biases_and_norms=False
    )
    assert [group["name"] for group in groups] == ["transferred, no decay", "new", "new, no decay"]
    assert [group["lr"] for group in groups] == [1e-5, 1e-3, 1e-3]
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(groups)
