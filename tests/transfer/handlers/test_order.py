"""Which handler converts a layer that several could: the user's own first, then the exact before the lossy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.transfer import WeightTransfer, register_handler
from transferkit.transfer.handlers import automatic_handlers, handler_names, unregister_handler


def last_rows(source, target):
    """Keep the trailing rows where the built-in slices keep the leading ones."""
    return {short: source.tensors[short][-len(own) :] for short, own in target.tensors.items()}


def test_a_listed_handler_comes_before_the_automatic_ones():
    wide, narrow = nn.Linear(4, 6), nn.Linear(4, 2)
    report = WeightTransfer(wide, handlers=[last_rows], on_mismatch="adapt").apply(narrow)
    assert {entry.handler for entry in report.entries} == {"last_rows"}
    assert torch.equal(narrow.weight, wide.weight[-2:])


def test_automatic_handlers_convert_what_the_listed_ones_do_not():
    source = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 9))
    target = nn.Sequential(nn.Linear(4, 2), nn.Linear(5, 9))

    def rows_alone(source, target):
        same_inputs = source.shapes["weight"][1:] == target.shapes["weight"][1:]
        return last_rows(source, target) if same_inputs else None

    report = WeightTransfer(source, handlers=[rows_alone], on_mismatch="adapt").apply(target)
    assert {entry.key: entry.handler for entry in report.entries} == {
        "0.weight": "rows_alone",
        "0.bias": "rows_alone",
        "1.weight": "slices",
        "1.bias": "",
    }


def test_listed_handlers_are_tried_in_the_order_listed():
    report = WeightTransfer(nn.Linear(4, 6), handlers=["slices", lambda s, t: None, last_rows])
    with pytest.raises(Exception, match="nothing to convert: <lambda>, last_rows"):
        report.plan(nn.Linear(4, 2))


def test_two_functions_of_one_name_are_two_handlers():
    def row(number):
        return lambda source, target: {"weight": source.tensors["weight"][number : number + 1]}

    source = nn.ModuleDict({"a": nn.Linear(4, 6, bias=False), "b": nn.Linear(4, 6, bias=False)})
    target = nn.ModuleDict({"a": nn.Linear(4, 1, bias=False), "b": nn.Linear(4, 1, bias=False)})
    report = WeightTransfer(source, handlers={"a": row(1), "b": row(2)}).apply(target)
    assert [entry.handler for entry in report.entries] == ["<lambda>", "<lambda> (2)"]
    assert torch.equal(target["a"].weight[0], source["a"].weight[1])
    assert torch.equal(target["b"].weight[0], source["b"].weight[2])


BUILT_IN = (
    "parametrizations",
    "fold_batch_norm",
    "cast",
    "inflate_kernel",
    "input_channels",
    "resize_kernel",
    "position_embeddings",
    "slices",
)


def test_the_automatic_order_goes_from_exact_to_lossy():
    assert tuple(name for name in automatic_handlers() if name in BUILT_IN) == BUILT_IN


def test_a_registered_handler_comes_after_the_built_in_ones_and_before_slices():
    register_handler("aaa_last_rows")(last_rows)
    try:
        order = list(automatic_handlers())
        assert (
            order.index("position_embeddings")
            < order.index("aaa_last_rows")
            < order.index("slices")
            == len(order) - 1
        )
        wide, narrow = nn.Linear(4, 6), nn.Linear(4, 2)
        report = WeightTransfer(wide, on_mismatch="adapt").apply(narrow)
        assert {entry.handler for entry in report.entries} == {"aaa_last_rows"}
    finally:
        unregister_handler("aaa_last_rows")


def test_the_order_does_not_depend_on_the_order_of_registration(monkeypatch):
    from transferkit.transfer.handlers import registry

    before = list(automatic_handlers())
    reversed_values = dict(reversed(registry._HANDLERS._values.items()))
    monkeypatch.setattr(registry._HANDLERS, "_values", reversed_values)
    assert list(automatic_handlers()) == before
    assert set(before) < set(handler_names())
