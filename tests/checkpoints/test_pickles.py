"""The stack machine reads what Python's own pickle wrote, and makes no call of its own."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.checkpoints._inert import Call, Global
from transferkit.checkpoints._pickles import read_pickle
from transferkit.checkpoints._values import PlainReader
from transferkit.errors import CheckpointError

SCALARS = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)
ARRAYS = st.builds(
    lambda shape, code, order: np.arange(np.prod(shape)).astype(code).reshape(shape, order=order),
    st.lists(st.integers(0, 4), max_size=3).map(tuple),
    st.sampled_from(["f2", "f4", "f8", ">f4", "i1", "<i8", ">u2", "b1", "c8"]),
    st.sampled_from("CF"),
)


def plain(content: bytes) -> object:
    return PlainReader(len(content)).read(read_pickle(content))


@settings(deadline=None, max_examples=150)
@given(VALUES, st.integers(0, 5))
def test_plain_values_are_what_pickle_says(value: object, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    found = read_pickle(content)
    assert found.value == value
    assert found.end == len(content)
    assert not found.globals


@settings(deadline=None, max_examples=80)
@given(ARRAYS, st.integers(0, 5))
def test_arrays_are_what_numpy_says(array: np.ndarray, protocol: int) -> None:
    saved = collections.OrderedDict(a=array, again=array, number=np.float32(1.5))
    found = plain(pickle.dumps(saved, protocol))
    assert np.array_equal(found["a"], array) and found["a"].shape == array.shape
    assert found["a"].dtype == array.dtype.newbyteorder("=")
    assert found["again"] is found["a"] and found["number"] == 1.5
    assert found["a"].flags.writeable and found["a"].flags.aligned


def test_strings_of_python_2_become_text() -> None:
    assert plain(b"\x80\x02}U\x04nameU\x05conv1s.") == {"name": "conv1"}
    assert plain(b"(dp0\nS'na\\x6de'\np1\nS'conv1'\np2\ns.") == {"name": "conv1"}


def test_a_call_is_written_down_and_not_made() -> None:
    found = read_pickle(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert isinstance(found.value, Call)
    assert found.value.function == Global("os", "system") and found.value.arguments == (b"exit 1",)
    assert found.globals == {Global("os", "system")}


def test_pickles_in_a_row_are_read_one_by_one() -> None:
    content = pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 2)
    first = read_pickle(content)
    assert read_pickle(content, first.end).value == {"a": 2}


@pytest.mark.parametrize("content", [b"", b".", b"\x80", b"(", b"]q\x00h\x00a.", b"}]K\x01s.", b"K\x01K\x02."])
def test_damage_is_an_error_of_this_library(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_pickle(content)


def test_a_refusal_is_not_reported_as_damage() -> None:
    with pytest.raises(CheckpointError, match=r"^refused: the pickle uses extension codes"):
        read_pickle(b"\x82\x01.")
