"""Every balance is a pure function of labels and a generator, and chooses what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.errors import ArgumentError
from transferkit.labeling import IGNORE
from transferkit.sampler import (
    AllPatches,
    BackgroundFraction,
    Balance,
    ClassBalanced,
    PositivesFirst,
    RandomSubset,
)

labels_lists = st.lists(st.sampled_from([0, 0, 0, 1, 2, 7, IGNORE]), min_size=1, max_size=40)
counts = st.none() | st.integers(1, 50)
balances = st.sampled_from(
    [
        PositivesFirst(),
        ClassBalanced(),
        ClassBalanced(0),
        ClassBalanced(1),
        RandomSubset(),
        AllPatches(),
        BackgroundFraction(0.3),
    ]
)


def chosen(balance: Balance, labels: list[int], count: int | None, seed: int = 0) -> list[int]:
    rows: list[int] = balance(torch.tensor(labels), count, torch.Generator().manual_seed(seed)).tolist()
    return rows


@settings(deadline=None, max_examples=300)
@given(balances, labels_lists, counts, st.integers(0, 3))
def test_rows_are_there_repeatable_and_as_many_as_announced(
    balance: Balance, labels: list[int], count: int | None, seed: int
) -> None:
    rows = chosen(balance, labels, count, seed)
    assert all(0 <= row < len(labels) for row in rows)
    assert rows == chosen(balance, labels, count, seed)
    size = getattr(balance, "size", None)
    announced = None if size is None else size(len(labels), count)
    assert announced is None or announced == len(rows)


@settings(deadline=None, max_examples=200)
@given(labels_lists, st.integers(1, 50), st.integers(0, 3))
def test_positives_first(labels: list[int], count: int, seed: int) -> None:
    rows = chosen(PositivesFirst(), labels, count, seed)
    positives = [row for row, label in enumerate(labels) if label > 0]
    background = [row for row, label in enumerate(labels) if label == 0]
    assert rows[: len(positives[:count])] == positives[:count]
    fill = Counter(rows[len(positives[:count]) :])
    assert set(fill) <= set(background or positives or range(len(labels)))
    if fill:
        assert max(fill.values()) - min(fill.get(row, 0) for row in background or fill) <= 1


@settings(deadline=None, max_examples=200)
@given(labels_lists, st.integers(1, 50), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_class_balanced(labels: list[int], count: int, part: float) -> None:
    found = Counter(labels[row] for row in chosen(ClassBalanced(part), labels, count))
    classes = {label for label in labels if label > 0}
    if classes:
        assert found[0] == (round(part * count) if 0 in labels else 0)
        shares = [found[label] for label in classes]
        assert max(shares) - min(shares) <= 1
        assert IGNORE not in found


@settings(deadline=None, max_examples=100)
@given(labels_lists, st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_background_fraction(labels: list[int], fraction: float) -> None:
    rows = chosen(BackgroundFraction(fraction), labels, 3)
    assert len(rows) == len(set(rows))
    assert [row for row in rows if labels[row]] == [row for row, label in enumerate(labels) if label > 0]
    assert sum(labels[row] == 0 for row in rows) == round(fraction * labels.count(0))


def test_background_is_drawn_evenly() -> None:
    drawn = Counter(row for seed in range(400) for row in chosen(PositivesFirst(), [0] * 10, 3, seed))
    assert all(80 <= drawn[row] <= 160 for row in range(10))


@pytest.mark.parametrize("make", [lambda: ClassBalanced(1.5), lambda: BackgroundFraction(-0.1)])
def test_parts_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError, match="from 0 to 1"):
        make()


@pytest.mark.parametrize(
    "labels", [torch.rand(8, 3), torch.rand(8), torch.ones(8, 2).long(), torch.ones(8).bool()]
)
def test_labels_that_are_no_classes_are_refused_where_they_are_looked_at(labels: torch.Tensor) -> None:
    source = torch.Generator().manual_seed(0)
    for balance in (PositivesFirst(), ClassBalanced(), BackgroundFraction()):
        with pytest.raises(ArgumentError, match=r"one class for each patch, .*RandomSubset\(\)"):
            balance(labels, 4, source)
    assert len(RandomSubset()(labels, 4, source)) == 4
    assert AllPatches()(labels, None, source).tolist() == list(range(8))
