"""Single tensors of a layer stay as they are by name, and the layer is transferred all the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.errors import SelectionError, TransferError
from transferkit.transfer import WeightTransfer


class Window(nn.Module):
    """Attention in a window: a table of biases that is wanted, and an index into it that the window's size makes."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.full((side, side), side))
        self.project = nn.Linear(2, 2)


def blocks(side: int) -> nn.Module:
    return nn.ModuleDict({"a": Window(side), "b": Window(side)})


def test_a_kept_tensor_stays_and_the_others_of_its_layer_move():
    source, target = blocks(2), blocks(3)
    report = WeightTransfer(source, keep="*.index").apply(target)
    for name in ("a", "b"):
        assert torch.equal(target[name].table, source[name].table)
        assert (target[name].index == 3).all() and target[name].index.shape == (3, 3)
    assert report.skipped == ("a.index", "b.index")
    kept = next(entry for entry in report.entries if entry.key == "a.index")
    assert kept.reason == "kept by '*.index'" and kept.sources[0].shape == (2, 2)
    assert report.coverage.tensors == (6, 6) and not report.unexpected


def test_the_refusal_says_so_and_exactly_those_are_kept():
    with pytest.raises(TransferError, match=r"keep='\*.index' \(--keep '\*.index'\)"):
        WeightTransfer(blocks(2)).apply(blocks(3))


def test_also_where_it_would_fit_or_is_missing():
    source, target = blocks(2).state_dict(), blocks(2)
    old = target["a"].table.detach().clone()
    del source["a.index"]
    report = WeightTransfer(source, keep=["a.table", "a.index"]).apply(target)
    assert torch.equal(target["a"].table, old)
    assert report.skipped == ("a.table", "a.index") and not report.missing


def test_a_handler_is_not_asked_to_fill_it():
    def rows(source, target):
        return {"table": source.tensors["table"][:9]}

    source, target = blocks(2), blocks(3)
    source["a"].table = nn.Parameter(torch.randn(12, 2))
    report = WeightTransfer(source, handlers=[rows], keep="*.index").apply(target)
    assert report.adapted == ("a.table",)
    assert torch.equal(target["a"].table, source["a"].table[:9])


def test_a_rule_must_match():
    with pytest.raises(
        SelectionError, match=r"keep matches no layer or tensor(?s:.*)did you mean '(a|b).index'"
    ):
        WeightTransfer(blocks(2), keep="*.indx").apply(blocks(2))
    with pytest.raises(SelectionError):  # a layer is left out by select
        WeightTransfer(blocks(2), keep="a").apply(blocks(2))


def test_what_is_tied_to_a_written_tensor_cannot_be_kept():
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    target[1].weight = target[0].weight
    old = target[0].weight.clone()
    with pytest.raises(TransferError, match=r"same memory as 0.weight(?s:.*)keep=\['1.weight', '0.weight'\]"):
        WeightTransfer(target.state_dict(), keep="1.weight").apply(target)
    source = {key: value + 1 for key, value in target.state_dict().items()}
    WeightTransfer(source, keep=["1.weight", "0.weight"]).apply(target)
    assert torch.equal(target[0].weight, old)


def test_to_keep_all_is_to_move_nothing():
    with pytest.raises(TransferError, match="All tensors that are selected are kept"):
        WeightTransfer(blocks(2), keep="*").apply(blocks(2))
