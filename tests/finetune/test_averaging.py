"""Averaged weights follow the optimizer, and a stopped run goes on with the same average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.errors import ArgumentError, StateError
from transferkit.finetune import AveragedWeights
from transferkit.optimization import WeightAverage


def setup(seed: int = 0) -> tuple[nn.Linear, torch.optim.SGD]:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Linear, optimizer: torch.optim.SGD, steps: range) -> list[torch.Tensor]:
    seen = []
    for step in steps:
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step))).pow(2).mean().backward()
        optimizer.step()
        seen.append(model.weight.detach().clone())
    return seen


def test_the_average_is_of_the_weights_after_the_steps_that_are_due() -> None:
    model, optimizer = setup()
    averaged = AveragedWeights(model, optimizer, WeightAverage(decay=None, start=1), steps_per_epoch=3)
    seen = train(model, optimizer, range(8))
    torch.testing.assert_close(averaged.model.weight.detach(), torch.stack(seen[3:]).mean(dim=0))
    assert (averaged.steps, averaged.count) == (8, 5)
    averaged.stop()
    train(model, optimizer, range(2))
    assert averaged.steps == 8


@pytest.mark.parametrize("settings", [WeightAverage(0.9), WeightAverage(None, every="epoch")])
def test_a_stopped_run_goes_on_to_the_same_average(settings: WeightAverage) -> None:
    model, optimizer = setup()
    whole = AveragedWeights(model, optimizer, settings, steps_per_epoch=2)
    train(model, optimizer, range(6))
    first, first_optimizer = setup()
    begun = AveragedWeights(first, first_optimizer, settings, steps_per_epoch=2)
    train(first, first_optimizer, range(3))
    second, second_optimizer = setup(seed=1)
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    resumed = AveragedWeights(second, second_optimizer, settings, steps_per_epoch=2)
    resumed.load_state_dict(begun.state_dict())
    train(second, second_optimizer, range(3, 6))
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert resumed.count == whole.count


def test_what_does_not_fit_is_said_so() -> None:
    model, optimizer = setup()
    averaged = AveragedWeights(model, optimizer, WeightAverage(), steps_per_epoch=2)
    other = nn.Linear(5, 2)
    foreign = AveragedWeights(
        other, torch.optim.SGD(other.parameters(), lr=1), WeightAverage(), steps_per_epoch=2
    )
    with pytest.raises(StateError, match="the saved average of weights is of another model: .*AveragedModel"):
        averaged.load_state_dict(foreign.state_dict())
    with pytest.raises(ArgumentError, match="steps_per_epoch must be at least 1, got 0"):
        AveragedWeights(model, optimizer, WeightAverage(), steps_per_epoch=0)
