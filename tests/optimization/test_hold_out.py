"""Every class has its share of the held-out part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.errors import ArgumentError
from transferkit.optimization import hold_out


def photos(seed: int, count: int = 300, classes: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rates = torch.logspace(-2, -0.3, classes)
    return torch.rand(count, classes, generator=generator) < rates


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.floats(0.1, 0.6))
def test_the_parts_are_a_partition_with_every_class_at_its_share(seed: int, fraction: float) -> None:
    presence = photos(seed)
    train, held = hold_out(presence, fraction, seed)
    assert torch.equal(torch.cat([train, held]).sort().values, torch.arange(len(presence)))
    assert abs(len(held) - fraction * len(presence)) <= 12
    assert (presence[held].sum(dim=0) - fraction * presence.sum(dim=0)).abs().max() <= 6


def test_it_is_closer_to_the_shares_than_chance() -> None:
    def error(presence: torch.Tensor, held: torch.Tensor) -> float:
        wanted = 0.2 * presence.sum(dim=0)
        return ((presence[held].sum(dim=0) - wanted).abs() / wanted.clamp(min=1)).mean().item()

    ours = [error(photos(seed), hold_out(photos(seed), 0.2, seed).held) for seed in range(20)]
    chance = [error(photos(seed), torch.randperm(300)[:60]) for seed in range(20)]
    assert sum(ours) < 0.5 * sum(chance)


def test_the_seed_alone_decides() -> None:
    presence = photos(0)
    assert torch.equal(hold_out(presence, seed=3).held, hold_out(presence, seed=3).held)
    assert not torch.equal(hold_out(presence, seed=3).held, hold_out(presence, seed=4).held)


def test_photos_of_nothing_are_split_too() -> None:
    train, held = hold_out(torch.zeros(10, 3), 0.3)
    assert (len(train), len(held)) == (7, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4),), r"presence must be \(N, K\), got \(4,\)"),
        ((torch.zeros(1, 2),), r"presence must be of two photos at least, got \(1, 2\)"),
        ((torch.zeros(4, 2), 1.0), r"fraction must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        hold_out(*arguments)


def test_zeros_and_ones_are_presence_and_nothing_else_is():
    presence = photos(1)
    for numbers in (presence.long(), presence.double()):
        assert torch.equal(hold_out(numbers).held, hold_out(presence).held)
    with pytest.raises(ArgumentError, match="presence must be true or false, or 0 and 1"):
        hold_out(presence * 0.5)
