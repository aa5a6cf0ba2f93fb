"""The rate rises in a line and falls in half a cosine."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.optimization import WarmupCosine


def test_it_is_its_formula_and_has_no_jump() -> None:
    schedule = WarmupCosine(epochs=12, warmup=2, final=0.1)
    times = [step / 1000 for step in range(13_000)]
    factors = [schedule.factor(time) for time in times]
    assert max(abs(a - b) for a, b in pairwise(factors)) < 1e-3
    assert max(factors) == pytest.approx(1) and factors[2000] == 1
    assert factors[1000] == 0.5
    assert factors[7000] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert factors[12_000] == factors[-1] == pytest.approx(0.1)


def test_without_a_rise_it_is_torchs_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8, eta_min=0.25)
    schedule = WarmupCosine(epochs=8, final=0.25)
    for epoch in range(8):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule.factor(epoch))
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"epochs": 5, "warmup": 5}, r"warmup must be in \[0, epochs=5\), got 5"),
        ({"epochs": 5, "final": 2}, r"final must be in \[0, 1\], got 2"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        WarmupCosine(**arguments)
