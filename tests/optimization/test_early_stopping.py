"""Training stops when the held-out part says so, and the best epoch is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.errors import ArgumentError
from transferkit.optimization import EarlyStopping

MEASURES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(MEASURES, st.integers(1, 5))
def test_the_best_is_the_first_maximum_and_it_stops_only_after_a_run_without_gain(measures, patience) -> None:
    rule = EarlyStopping(patience)
    best = rule.best(measures)
    assert best == measures.index(max(measures))
    assert rule.stop(measures) == (
        len(measures) > patience and max(measures[-patience:]) <= max(measures[:-patience])
    )


def test_small_gains_do_not_count() -> None:
    rule = EarlyStopping(patience=2, min_gain=0.01)
    assert rule.best([0.5, 0.505, 0.52]) == 2
    assert rule.stop([0.5, 0.505, 0.508]) and not rule.stop([0.5, 0.505, 0.52])
    assert not rule.stop([])


def test_an_epoch_without_a_measure_is_never_the_best() -> None:
    assert EarlyStopping().best([math.nan, 0.1, math.nan]) == 1


@pytest.mark.parametrize("patience", [0, -1])
def test_bad_arguments_are_named(patience: int) -> None:
    with pytest.raises(ArgumentError, match="patience must be at least 1"):
        EarlyStopping(patience)
    with pytest.raises(ArgumentError, match="measures must be one per epoch"):
        EarlyStopping().best([])
