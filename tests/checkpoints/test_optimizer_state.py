from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transferkit.checkpoints import Checkpoint, read_checkpoint


def trained(groups: str, kind: type[torch.optim.Optimizer]) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 2))
    if groups == "one":
        parameters: list[dict[str, object]] = [{"params": list(model.parameters())}]
    elif groups == "decay":
        parameters = [
            {"params": [p for p in model.parameters() if p.ndim > 1]},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
    elif groups == "named":
        parameters = [{"params": list(model.named_parameters())[::-1]}]
    else:
        parameters = [{"params": list(model[3].parameters())}]
    optimizer = kind(parameters, lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("groups", ["one", "decay", "named", "last layer"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_saved_state_finds_its_parameter(groups: str, kind: type[torch.optim.Optimizer]) -> None:
    model, optimizer = trained(groups, kind)
    checkpoint = read_checkpoint({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    live = Checkpoint.from_model(model, optimizer)
    for saved, own in zip(checkpoint, live, strict=True):
        assert saved.states.keys() == own.states.keys()
        for short, state in own.states.items():
            assert all(torch.equal(saved.states[short][name], value) for name, value in state.items())
    assert checkpoint[-1].states["weight"]


def test_state_that_fits_in_two_ways_is_left_out_with_a_note() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = Checkpoint.from_state_dict(model.state_dict(), optimizer.state_dict())
    assert not any(layer.states for layer in checkpoint)
    assert "cannot be told apart" in checkpoint.notes[0]


def equal_layers(count: int = 3) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))


def stepped(optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    return optimizer


def is_own(checkpoint: Checkpoint, model: nn.Module, *optimizers: torch.optim.Optimizer) -> bool:
    """Whether every state that is attached is that of the parameter it is attached to."""
    own = {id(parameter): state for optimizer in optimizers for parameter, state in optimizer.state.items()}
    return all(
        torch.equal(state["exp_avg"], own[id(model.get_parameter(layer.key(short)))]["exp_avg"])
        for layer in checkpoint
        for short, state in layer.states.items()
    )


def attached(checkpoint: Checkpoint) -> int:
    return sum(len(layer.states) for layer in checkpoint)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_groups_in_any_order_give_each_parameter_its_own_state_or_none(data: st.DataObject) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4))
    layers = data.draw(st.permutations(range(5)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 4), min_size=1)))
    parts = [sorted(layers[a:b]) for a, b in zip([0, *cuts], [*cuts, 5], strict=True)]
    named = data.draw(st.booleans())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[p for place in part for p in model[place].parameters()] for part in parts]
    optimizer = torch.optim.Adam(
        [{"params": [(names[id(p)], p) if named else p for p in group]} for group in groups]
    )
    stepped(optimizer, model)
    checkpoint = Checkpoint.from_state_dict(model.state_dict(), optimizer.state_dict())
    assert is_own(checkpoint, model, optimizer)
    assert attached(checkpoint) == 10 or (not named and "cannot be told apart" in checkpoint.notes[0])
    assert not named or attached(checkpoint) == 10


def test_new_layers_first_is_refused_where_shapes_do_not_tell() -> None:
    model = equal_layers(2)
    optimizer = stepped(torch.optim.Adam([{"params": model[i].parameters()} for i in (1, 0)]), model)
    checkpoint = Checkpoint.from_state_dict(model.state_dict(), optimizer.state_dict())
    assert not attached(checkpoint)
    assert "model.named_parameters()" in checkpoint.notes[0]


@pytest.mark.parametrize("names", [["0.weight"] * 4, ["weight", "bias"] * 2, ["0.weight", "0.bias", "x", "y"]])
def test_names_that_are_not_the_file_s_are_not_believed(names: list[str]) -> None:
    model = equal_layers(2)
    optimizer = stepped(torch.optim.Adam(list(zip(names, model.parameters(), strict=True))), model)
    checkpoint = Checkpoint.from_state_dict(model.state_dict(), optimizer.state_dict())
    assert not attached(checkpoint) and checkpoint.notes


def test_two_optimizers_in_a_file_serve_where_they_can_be_told_apart() -> None:
    for model, told in ((equal_layers(2), False), (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6)), True)):
        optimizers = [torch.optim.Adam(layer.parameters()) for layer in model]
        model(torch.randn(5, 4)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        saved = {"state_dict": model.state_dict(), "optimizer_states": [o.state_dict() for o in optimizers]}
        checkpoint = read_checkpoint(saved)
        assert attached(checkpoint) == (4 if told else 0) and is_own(checkpoint, model, *optimizers)
        assert told or checkpoint.notes[0].startswith("the file holds 2 optimizers")


def test_factored_states_find_their_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = stepped(torch.optim.Adafactor(model.parameters()), model)
    checkpoint = Checkpoint.from_state_dict(model.state_dict(), optimizer.state_dict())
    own = optimizer.state[model[1].weight]
    assert torch.equal(checkpoint["1"].states["weight"]["row_var"], own["row_var"])


MALFORMED = [
    {"state": {0: [1]}, "param_groups": [{"params": [0]}]},
    {"state": {0: {"a": 1}}, "param_groups": [{}]},
    {"state": {0: {"a": 1}}, "param_groups": [{"params": [[0]]}]},
    {"state": {0: {"a": 1}}, "param_groups": 3},
    {"state": {0: {"a": 1}, 7: {"a": 1}}, "param_groups": [{"params": [0]}]},
    {"state": 5, "param_groups": [{"params": [0]}]},
    {"state": {0: {"a": 1}}, "param_groups": [{"params": [0], "param_names": ["a", "b"]}]},
]


@pytest.mark.parametrize("saved", MALFORMED, ids=str)
def test_what_torch_does_not_save_is_left_out_with_a_note(saved: dict[str, object]) -> None:
    checkpoint = Checkpoint.from_state_dict(equal_layers(1).state_dict(), saved)
    assert not attached(checkpoint) and "not as torch saves it" in checkpoint.notes[0]


def test_a_checkpoint_moves_to_a_device_with_what_is_known_of_its_states() -> None:
    model = equal_layers(1)
    optimizer = stepped(torch.optim.Adam(model.parameters()), model)
    file = Checkpoint.from_model(model, optimizer)
    optimizer.state[model[0].weight]["more"] = [torch.zeros(2), 3]
    there = Checkpoint.from_model(model, optimizer).to("meta")["0"].states["weight"]
    assert there["more"][0].is_meta and there["more"][1] == 3
    assert there.made_by == file["0"].states["weight"].made_by == "torch.optim.adam.Adam"
