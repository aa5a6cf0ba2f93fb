"""An average of weights is the average by its definition."""

from __future__ import annotations

import pytest
from torch import nn

from transferkit.errors import ArgumentError
from transferkit.optimization import WeightAverage


def averaged(settings: WeightAverage, values: list[float]) -> float:
    model = nn.Linear(1, 1, bias=False)
    average = settings.of(model)
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    return average.module.weight.item()


def test_equal_weights_give_the_mean() -> None:
    assert averaged(WeightAverage(decay=None), [1, 2, 6, 7]) == pytest.approx(4)


def test_a_moving_average_is_its_recurrence_and_forgets_the_start() -> None:
    settings = WeightAverage(decay=0.9)
    values = [100.0, *[float(v) for v in range(200)]]
    expected = values[0]
    for count, value in enumerate(values[1:], start=1):
        keep = min(0.9, (1 + count) / (10 + count))
        expected = keep * expected + (1 - keep) * value
    assert averaged(settings, values) == pytest.approx(expected, rel=1e-5)
    assert averaged(WeightAverage(decay=0.9999), [100.0] + [1.0] * 30) < 1.1


def test_which_steps_are_due() -> None:
    each = WeightAverage(start=1.5)
    assert [step for step in range(1, 9) if each.due(step, 4)] == [7, 8]
    epochs = WeightAverage(decay=None, start=1, every="epoch")
    assert [step for step in range(1, 14) if epochs.due(step, 4)] == [8, 12]


def test_buffers_are_those_of_the_model() -> None:
    model = nn.BatchNorm1d(2)
    average = WeightAverage().of(model)
    model.running_mean.fill_(5.0)
    average.update_parameters(model)
    assert average.module.running_mean.tolist() == [5.0, 5.0]
    assert not any(parameter.requires_grad for parameter in average.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, r"decay must be in \(0, 1\), or None, got 1.0"),
        ({"start": -1}, "start must be zero or positive, got -1"),
        ({"every": "batch"}, "every must be 'step' or 'epoch', got 'batch'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        WeightAverage(**arguments)
