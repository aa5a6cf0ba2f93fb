from __future__ import annotations

import pytest
import torch
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
