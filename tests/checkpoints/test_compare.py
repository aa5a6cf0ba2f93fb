from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.checkpoints import Checkpoint
from transferkit.checkpoints import _describe as compare_module
from transferkit.checkpoints._describe import compare, value_difference
from transferkit.display import text_table

FLOATS = st.floats(allow_subnormal=False, width=32)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=30))
def test_differences_are_those_of_a_slow_loop(pairs: list[tuple[float, float]]) -> None:
    a, b = (torch.tensor(side) for side in zip(*pairs, strict=True))
    found = value_difference("x", a, b)
    gaps = [
        math.inf if math.isnan(x - y) else abs(x - y)
        for x, y in pairs
        if not (x == y or (math.isnan(x) and math.isnan(y)))
    ]
    assert found.differing == len(gaps)
    assert found.largest == max(gaps, default=0.0)
    assert found.mean == pytest.approx(sum(gaps) / len(pairs))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_size_of_the_chunks_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.arange(120.0).reshape(4, 5, 6).transpose(0, 2)
    b = a.clone()
    b[3, 2, 1] += 2
    wanted = value_difference("x", a, b)
    monkeypatch.setattr(compare_module, "_CHUNK", chunk)
    assert value_difference("x", a, b) == wanted
    assert (wanted.differing, wanted.largest) == (1, 2.0)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64, torch.uint8]
)
def test_every_dtype_compares(dtype: torch.dtype) -> None:
    a = torch.tensor([0, 1, 1]).to(dtype)
    assert value_difference("x", a, a).differing == 0
    assert value_difference("x", a, torch.tensor([0, 1, 0]).to(dtype)).largest == 1


def test_every_tensor_is_counted_once() -> None:
    first = {
        "a.weight": torch.zeros(2),
        "b.weight": torch.zeros(2),
        "c.weight": torch.zeros(2),
        "d.weight": torch.ones(1),
    }
    second = {"a.weight": torch.zeros(2), "b.weight": torch.zeros(3), "c.weight": torch.zeros(2).double()}
    found = compare(Checkpoint.from_state_dict(first), Checkpoint.from_state_dict(second), values=True)
    assert found and list(found.only_first) == ["d.weight"] and not found.only_second
    assert list(found.shapes) == ["b.weight"] and list(found.dtypes) == ["c.weight"]
    assert found.same == 1
    same = compare(Checkpoint.from_state_dict(first), Checkpoint.from_state_dict(first), values=True)
    assert not same and same.same == 4


def test_a_table_gives_way_in_the_columns_that_may() -> None:
    rows = [["name", "size"], ["a long name that goes on and on", "7"]]
    assert text_table(rows, 24, shrink=(0,))[1] == "a long name that …  7"
    assert all(len(line) <= 24 for line in text_table(rows, 24, shrink=(0,)))
    assert text_table([], 10) == []


def test_integers_too_large_for_a_float_are_told_apart() -> None:
    assert value_difference("x", torch.tensor([2**60]), torch.tensor([2**60 + 1])).differing == 1
