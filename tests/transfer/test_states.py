"""Optimizer state moves with its parameters, or starts anew and is said to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.checkpoints import Checkpoint
from transferkit.errors import ArgumentError, TransferError
from transferkit.transfer import WeightTransfer, before, freeze
from transferkit.transfer.handlers import ClassRows, InputChannels

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 6, 6, generator=generator).to(dtype)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_happened(name):
    source, target = net(), net()
    held = OPTIMIZERS[name](source.parameters())
    train(source, held, 3)
    file = Checkpoint.from_model(source, held)
    optimizer = OPTIMIZERS[name](target.parameters())
    report = WeightTransfer(file, load_states=True).apply(target, optimizer)
    assert {line.outcome for line in report.states} == {"moved"} and len(report.states) == 4
    train(source, held, 2, seed=1)
    train(target, optimizer, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_states_of_the_transferred_layers_alone_and_none_is_shared_with_the_source():
    source, target = net(), net(5)
    held = OPTIMIZERS["adam"](source.parameters())
    train(source, held, 3)
    optimizer = OPTIMIZERS["adam"](target.parameters())
    train(target, optimizer, 1)
    head = {name: value.clone() for name, value in optimizer.state[target[3].weight].items()}
    WeightTransfer(Checkpoint.from_model(source, held), select=before("3"), load_states=True).apply(
        target, optimizer
    )
    moved, original = optimizer.state[target[0].weight], held.state[source[0].weight]
    assert moved["step"] == 3 and torch.equal(moved["exp_avg"], original["exp_avg"])
    assert all(torch.equal(value, head[name]) for name, value in optimizer.state[target[3].weight].items())
    train(target, optimizer, 1)
    assert original["step"] == 3


def test_layout_dtype_and_device_are_the_targets():
    source, target = net(), net().to(torch.float64)
    target[0].to(memory_format=torch.channels_last)
    held = OPTIMIZERS["sgd"](source.parameters())
    train(source, held, 2)
    optimizer = OPTIMIZERS["sgd"](target.parameters())
    WeightTransfer(Checkpoint.from_model(source, held), load_states=True).apply(target, optimizer)
    momentum = optimizer.state[target[0].weight]["momentum_buffer"]
    assert momentum.dtype == torch.float64 and momentum.stride() == target[0].weight.stride()
    train(target, optimizer, 1)


@pytest.mark.parametrize(
    ("handlers", "expected"),
    [
        ({"3": ClassRows("abc", "cad", new="d")}, "adapted"),
        ({"3": lambda source, target: {k: v[:3] * 2 for k, v in source.tensors.items()}}, "reset"),
        ({"0": InputChannels(order=(2, 1, 0))}, "adapted"),
        ({"0": InputChannels(source_mean=(1, 2, 3))}, "reset"),
    ],
)
def test_adapted_parameters_adapt_their_state_or_reset_it(handlers, expected):
    source, target = net(), net()
    held = OPTIMIZERS["adam"](source.parameters())
    train(source, held, 2)
    optimizer = OPTIMIZERS["adam"](target.parameters())
    train(target, optimizer, 1)
    transfer = WeightTransfer(Checkpoint.from_model(source, held), handlers=handlers, load_states=True)
    report = transfer.apply(target, optimizer)
    layer = next(iter(handlers))
    outcomes = {line.key: line for line in report.states}
    assert outcomes[f"{layer}.weight"].outcome == expected
    weight = target[int(layer)].weight
    if expected == "reset":
        assert weight not in optimizer.state
        assert "does not convert optimizer state" in outcomes[f"{layer}.weight"].reason
        assert f"{layer}.weight: " in str(report)
    elif layer == "3":
        original = held.state[source[3].weight]["exp_avg"]
        assert torch.equal(optimizer.state[weight]["exp_avg"][:2], original[[2, 0]])
        assert (optimizer.state[weight]["exp_avg"][2] == 0).all()  # a new class has no history
    else:
        original = held.state[source[0].weight]["exp_avg"]
        assert torch.equal(optimizer.state[weight]["exp_avg"], original.flip(1))
    train(target, optimizer, 1)


def test_another_optimizers_state_is_reset_with_the_reason():
    source, target = net(), net()
    held = OPTIMIZERS["adam"](source.parameters())
    train(source, held, 2)
    optimizer = OPTIMIZERS["sgd"](target.parameters())
    with pytest.raises(
        TransferError, match="SGD keeps momentum_buffer, the source has step, exp_avg, exp_avg_sq"
    ):
        WeightTransfer(Checkpoint.from_model(source, held), load_states=True).apply(target, optimizer)


def test_asking_without_an_optimizer_or_without_states():
    with pytest.raises(ArgumentError, match="needs the optimizer"):
        WeightTransfer(net(), load_states=True).apply(net())
    target = net()
    old = [p.clone() for p in target.parameters()]
    with pytest.raises(TransferError, match=r"no optimizer state could be moved \(the source has none\)"):
        WeightTransfer(net(), load_states=True).apply(target, OPTIMIZERS["sgd"](target.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(old, target.parameters(), strict=True))


def test_from_a_state_dict_and_its_optimizers():
    source, target = net(), net()
    held = OPTIMIZERS["sgd"](source.parameters())
    train(source, held, 2)
    file = Checkpoint.from_state_dict(source.state_dict(), optimizer_state=held.state_dict())
    optimizer = OPTIMIZERS["sgd"](target.parameters())
    WeightTransfer(file, load_states=True).apply(target, optimizer)
    expected = held.state[source[3].bias]["momentum_buffer"]
    assert torch.equal(optimizer.state[target[3].bias]["momentum_buffer"], expected)


def test_an_optimizer_that_does_not_go_with_the_model_is_reported():
    source, target = net(), net()
    freeze(target, before("3"))
    report = WeightTransfer(source).apply(target, OPTIMIZERS["sgd"](target.parameters()))
    assert "the optimizer holds 2 frozen parameters: 0.weight, 0.bias" in report.notes
    freeze(target)
    report = WeightTransfer(source).apply(target, OPTIMIZERS["sgd"](target.parameters()))
    assert "the optimizer trains no parameter of this model" in report.notes
    report = WeightTransfer(source).apply(target, OPTIMIZERS["sgd"](net().parameters()))
    assert "the optimizer trains no parameter of this model" in report.notes
    other = net()
    optimizer = OPTIMIZERS["sgd"](other.parameters())
    train(other, optimizer, 1)
    report = WeightTransfer(source).apply(other, optimizer)
    assert "the optimizer keeps state of 4 parameters from before the transfer" in report.notes
