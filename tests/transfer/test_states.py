"""Optimizer state moves with its parameters, or starts anew and is said to."""

from __future__ import annotations

import copy
import re
from collections import defaultdict

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


# Whose state it is: compared by the class that steps, not by names.


def square(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, bias=bias), nn.Linear(4, 4, bias=bias))


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        pixels = torch.randn(5, 4, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        model(pixels).square().sum().backward()
        optimizer.step()


def held(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, object]]:
    return copy.deepcopy(optimizer.state_dict()["state"])


def equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or one is other


class MyAdam(torch.optim.Adam):
    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)


class Odd(torch.optim.Optimizer):
    """Keeps what others keep: a plain count, lists, dicts, None, numbers by name, and what comes late."""

    def __init__(self, params, lr=0.01, centered=False):
        super().__init__(params, {"lr": lr, "centered": centered})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "buffers": [torch.zeros_like(p)], "by": {0.5: torch.zeros_like(p)}}
                    state |= {"nothing": None, "scale": torch.ones(()), "row": torch.zeros_like(p[:1])}
                state["step"] += 1
                state["buffers"][0].mul_(0.9).add_(p.grad)
                state["by"][0.5].mul_(0.5).add_(p.grad)
                state["late"] = 1.0 / state["step"]
                state["row"].add_(p.grad[:1])
                update = state["buffers"][0] + state["by"][0.5] * state["late"] + state["row"]
                p.data.sub_(update * state["scale"], alpha=group["lr"])


PAIRS = {
    "a sum onto an average": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.Muon),
    "equal names": (torch.optim.Adam, torch.optim.RAdam),
    "a subclass that keeps more": (torch.optim.AdamW, lambda p: MyAdam(p, amsgrad=True)),
    "the other sign": (torch.optim.Adam, lambda p: torch.optim.Adam(p, maximize=True)),
    "undamped": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
    ),
    "a switch of a class that nothing is known of": (Odd, lambda p: Odd(p, centered=True)),
    "a class that nothing is known of": (torch.optim.Adam, Odd),
}


@pytest.mark.parametrize("saved", [False, True], ids=["live", "file"])
@pytest.mark.parametrize("pair", PAIRS)
def test_states_of_another_meaning_are_refused_and_change_nothing(pair, saved):
    make, other = PAIRS[pair]
    source, target = square(), square()
    optimizer, receiving = make(source.parameters()), other(target.parameters())
    descend(source, optimizer)
    file = Checkpoint.from_model(source, optimizer)
    if saved:
        file = Checkpoint.from_state_dict(source.state_dict(), optimizer.state_dict())
    descend(target, receiving, 1)
    old, states = copy.deepcopy(target.state_dict()), held(receiving)
    with pytest.raises(TransferError, match=type(receiving).__name__):
        WeightTransfer(file, load_states=True).apply(target, receiving)
    assert equal(dict(old), dict(target.state_dict())) and equal(states, held(receiving))


@pytest.mark.parametrize("saved", [False, True], ids=["live", "file"])
@pytest.mark.parametrize("make", [MyAdam, Odd, torch.optim.Muon, torch.optim.Adafactor, torch.optim.ASGD])
def test_any_class_goes_on_as_after_its_own_load_state_dict(make, saved):
    source, expected, target = square(), square(), square()
    optimizer, loaded, receiving = (make(m.parameters(), lr=0.01) for m in (source, expected, target))
    descend(source, optimizer)
    expected.load_state_dict(source.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    file = Checkpoint.from_model(source, optimizer)
    if saved:
        file = Checkpoint.from_state_dict(source.state_dict(), optimizer.state_dict())
    report = WeightTransfer(file, load_states=True).apply(target, receiving)
    assert {line.outcome for line in report.states} == {"moved"}
    assert bool(report.notes) == saved  # a file does not say whose states they are
    descend(expected, loaded), descend(target, receiving)
    assert all(map(torch.equal, expected.parameters(), target.parameters()))


def test_step_counts_of_old_files_are_plain_numbers():
    source, target = square(), square()
    optimizer, receiving = torch.optim.Adam(source.parameters()), torch.optim.Adam(target.parameters())
    descend(source, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
    for name in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
        saved["param_groups"][0].pop(name, None)
    WeightTransfer(Checkpoint.from_state_dict(source.state_dict(), saved), load_states=True).apply(
        target, receiving
    )
    descend(source, optimizer), descend(target, receiving)
    assert all(map(torch.equal, source.parameters(), target.parameters()))


# What is wrong with a state is told before anything is written.


def damaged(**values: object) -> tuple[nn.Module, torch.optim.Optimizer]:
    source = square()
    optimizer = torch.optim.SGD(source.parameters(), lr=0.01, momentum=0.9)
    descend(source, optimizer)
    optimizer.state[source[0].weight].update(values)
    return source, optimizer


BROKEN = {
    "NaN": (torch.full((4, 4), float("nan")), "16 of 16 values are NaN or infinite"),
    "overflow": (torch.full((4, 4), 1e6), "16 of 16 values overflow float16"),
    "shape": (torch.zeros(9), r"of shape \[9\], and its parameter is \[4, 4\]"),
    "a scalar": (torch.zeros(()), r"of shape \[\], and its parameter is \[4, 4\]"),
    "an object": (object(), "neither numbers nor a plain tensor"),
    "sparse": (torch.eye(4).to_sparse(), "neither numbers nor a plain tensor"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_states_are_not_moved(kind):
    value, message = BROKEN[kind]
    source, optimizer = damaged(momentum_buffer=value)
    target = square().half()
    receiving = torch.optim.SGD(target.parameters(), lr=0.01, momentum=0.9)
    old = copy.deepcopy(target.state_dict())
    transfer = WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True)
    try:
        report = transfer.apply(target, receiving)
    except TransferError as error:
        assert re.search(message, str(error)) and not receiving.state
        assert equal(dict(old), dict(target.state_dict()))
    else:
        line = next(line for line in report.states if line.key == "0.weight")
        assert line.outcome == "reset" and message in line.reason
        descend(target, receiving, 1)
        assert all(torch.isfinite(parameter).all() for parameter in target.parameters())


STRANGE = [None, {}, [], object(), "text", torch.ones(3), {"momentum_buffer": None}, {0: 1}, {"a": [[[]]]}]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)
def test_whatever_either_optimizer_holds_a_transfer_ends_or_changes_nothing(value):
    for side in ("source", "target"):
        for load_states in (False, True):
            source, optimizer = damaged()
            target = square()
            receiving = torch.optim.SGD(target.parameters(), lr=0.01, momentum=0.9)
            descend(target, receiving, 1)
            spoilt, model = (optimizer, source) if side == "source" else (receiving, target)
            spoilt.state[model[0].weight] = value
            old = copy.deepcopy(target.state_dict())
            transfer = WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=load_states)
            try:
                transfer.apply(target, receiving)
            except TransferError:
                assert load_states and equal(dict(old), dict(target.state_dict()))
            else:
                assert torch.equal(target[0].weight, source[0].weight)


def test_an_optimizer_that_does_not_take_its_states_is_as_it_was():
    class Fussy(torch.optim.SGD):
        def __setstate__(self, state):
            self.param_groups[0]["lr"] = 7
            raise KeyError("fussy")

    source, target = square(), square()
    optimizer, receiving = (torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (source, target))
    descend(source, optimizer), descend(target, receiving)
    receiving.__class__ = Fussy
    old, states = copy.deepcopy(target.state_dict()), held(receiving)
    with pytest.raises(TransferError, match="Fussy does not take the states: KeyError"):
        WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True).apply(target, receiving)
    assert equal(dict(old), dict(target.state_dict())) and equal(states, held(receiving))
    assert receiving.param_groups[0]["lr"] == 0.01


def test_the_step_after_a_transfer_in_inference_mode_is_an_ordinary_one():
    source, optimizer = damaged()
    target = square()
    receiving = torch.optim.SGD(target.parameters(), lr=0.01, momentum=0.9)
    with torch.inference_mode():
        WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True).apply(target, receiving)
    descend(source, optimizer), descend(target, receiving)
    assert all(map(torch.equal, source.parameters(), target.parameters()))


def test_adagrad_starts_anew_with_the_state_that_it_cannot_step_without():
    source, target = net(), net()
    optimizer = OPTIMIZERS["adagrad"](source.parameters())
    train(source, optimizer, 2)
    receiving = OPTIMIZERS["adagrad"](target.parameters())
    handlers = {"3": lambda source, target: {k: v * 2 for k, v in source.tensors.items()}}
    transfer = WeightTransfer(Checkpoint.from_model(source, optimizer), handlers=handlers, load_states=True)
    assert "reset" in {line.outcome for line in transfer.apply(target, receiving).states}
    assert receiving.state[target[3].weight]["step"] == 0
    train(target, receiving, 1)


# Optimizers around optimizers.


class Passing(torch.optim.Optimizer):
    """As accelerate's: everything is the inner one's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)
    defaults = property(lambda self: self.optimizer.defaults)

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class Slow(torch.optim.Optimizer):
    """As Lookahead: it keeps a state of its own for each parameter."""

    def __init__(self, optimizer):
        self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.state, self.defaults = defaultdict(dict), optimizer.defaults

    def step(self, closure=None):
        self.optimizer.step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                p.data.copy_(slow.lerp_(p.detach(), 0.5))

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def test_a_wrapper_is_seen_through():
    source, target = square(), square()
    optimizer, receiving = (Passing(torch.optim.Adam(m.parameters())) for m in (source, target))
    descend(source, optimizer)
    WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True).apply(target, receiving)
    descend(source, optimizer), descend(target, receiving)
    assert all(map(torch.equal, source.parameters(), target.parameters()))


def test_a_wrapper_with_states_of_its_own_is_refused_by_name_on_either_side():
    source, target = square(), square()
    optimizer, receiving = (Slow(torch.optim.Adam(m.parameters())) for m in (source, target))
    descend(source, optimizer), descend(target, receiving)
    whole = "Slow keeps states of its own beside those of the Adam inside"
    with pytest.raises(TransferError, match=whole):
        WeightTransfer(Checkpoint.from_model(source, optimizer.optimizer), load_states=True).apply(
            target, receiving
        )
    with pytest.raises(TransferError, match=whole):
        WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True).apply(
            target, receiving.optimizer
        )
    # The next step of both messages.
    WeightTransfer(Checkpoint.from_model(source, optimizer.optimizer), load_states=True).apply(
        target, receiving.optimizer
    )
    descend(source, optimizer.optimizer), descend(target, receiving.optimizer)
    assert all(map(torch.equal, source.parameters(), target.parameters()))


def test_optimizers_with_one_state_for_all_or_a_loading_of_their_own_are_refused_by_name():
    class Own(torch.optim.Adam):
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)

    source, target = square(), square()
    optimizer = torch.optim.Adam(source.parameters())
    descend(source, optimizer)
    transfer = WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True)
    with pytest.raises(TransferError, match="LBFGS keeps one state for all parameters"):
        transfer.apply(target, torch.optim.LBFGS(target.parameters()))
    with pytest.raises(TransferError, match=r"Own loads its states in a way of its own.*load_state_dict"):
        transfer.apply(target, Own(target.parameters()))


# Tied parameters.


class Tied(nn.Module):
    def __init__(self, first: str, tie: bool = True) -> None:
        super().__init__()
        layers = {"embed": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False)}
        if tie:
            layers["out"].weight = layers["embed"].weight
        for name in sorted(layers, key=lambda name: name != first):
            self.add_module(name, layers[name])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(tokens))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(5)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("saved", [False, True], ids=["live", "file"])
@pytest.mark.parametrize("order", [("embed", "out"), ("out", "embed"), ("embed", "embed")])
def test_tied_parameters_take_their_state_along_in_any_order_of_definition(order, saved):
    source, target = map(Tied, order)
    optimizer, receiving = (torch.optim.Adam(model.parameters()) for model in (source, target))
    learn(source, optimizer)
    file = Checkpoint.from_model(source, optimizer)
    if saved:
        file = Checkpoint.from_state_dict(source.state_dict(), optimizer.state_dict())
    report = WeightTransfer(file, load_states=True).apply(target, receiving)
    assert [line.outcome for line in report.states] == ["moved"]
    learn(source, optimizer), learn(target, receiving)
    assert torch.equal(source.embed.weight, target.embed.weight)


def test_different_states_for_what_the_target_ties_are_not_one_state():
    source, target = Tied("embed", tie=False), Tied("embed")
    source.out.weight.data.copy_(source.embed.weight)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.0, momentum=0.9)
    learn(source, optimizer)
    optimizer.state[source.out.weight]["momentum_buffer"].mul_(2)
    receiving = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(TransferError, match="the target ties what the source keeps different states for"):
        WeightTransfer(Checkpoint.from_model(source, optimizer), load_states=True).apply(target, receiving)
