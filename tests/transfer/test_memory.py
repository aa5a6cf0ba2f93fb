"""Tensors that lie in one memory, in part or as a whole, and tensors that lie in none: right, or refused by name."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from transferkit.errors import TransferError
from transferkit.memory import laid_out_alike, not_plain, overlapping, same_memory
from transferkit.transfer import WeightTransfer, by_name


class Mirrored(nn.Module):
    """An autoencoder whose decoder's weight is its encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        self.decoder.weight = nn.Parameter(self.encoder.weight.t())


class Untied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)


class Stacked(nn.Module):
    """Query, key and value as rows of one weight, each also a layer of its own; and something beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(2, 6, bias=False)
        for name, rows in zip("qkv", self.qkv.weight.data.chunk(3), strict=True):
            layer = nn.Linear(2, 2, bias=False)
            layer.weight = nn.Parameter(rows)
            setattr(self, name, layer)
        self.head = nn.Linear(2, 2)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [Mirrored, Stacked])
def test_a_source_laid_out_alike_fits(make):
    source, model = make(), make()
    WeightTransfer(source.state_dict()).apply(model)
    assert unchanged(model, source.state_dict())


def test_values_that_one_memory_cannot_both_hold_are_refused():
    model = Mirrored()
    before = values(model)
    with pytest.raises(
        TransferError, match=r"encoder\.weight, decoder\.weight share memory.*~by_name\('decoder'\)"
    ):
        WeightTransfer(Untied()).apply(model)
    assert unchanged(model, before)


def test_the_transposed_twin_of_what_is_written_is_tied_to_it():
    source, model = Untied(), Mirrored()
    report = WeightTransfer(source, select=by_name("encoder")).apply(model)
    assert report.tied == ("decoder.weight",)
    assert report.skipped == ("decoder.bias",)
    assert torch.equal(model.decoder.weight, source.encoder.weight.t())


def test_what_would_be_overwritten_in_part_is_refused_and_rows_of_a_written_whole_are_tied():
    source, model = Stacked(), Stacked()
    before = values(model)
    with pytest.raises(TransferError, match=r"qkv\.weight(?s:.*)shares part of its memory with q\.weight"):
        WeightTransfer(source, select=by_name("q")).apply(model)
    assert unchanged(model, before)
    report = WeightTransfer(source, select=by_name("qkv")).apply(model)
    assert report.tied == ("q.weight", "k.weight", "v.weight")
    assert torch.equal(model.k.weight, source.k.weight)
    assert torch.equal(model.head.weight, before["head.weight"])


def test_views_on_the_meta_device_are_refused_and_one_weight_of_two_layers_is_not():
    with torch.device("meta"):
        views, tied = Mirrored(), Untied()
        tied.decoder = nn.Linear(4, 3)
        tied.decoder.weight = nn.Parameter(tied.encoder.weight.detach())
    with pytest.raises(TransferError, match=r"encoder\.weight, decoder\.weight are views of one memory"):
        WeightTransfer(Mirrored(), device="cpu").apply(views)
    weight = torch.randn(3, 4)
    source = {
        f"{name}.{short}": t
        for name in ("encoder", "decoder")
        for short, t in (("weight", weight), ("bias", torch.ones(3)))
    }
    report = WeightTransfer(source, device="cpu").apply(tied)
    assert report.tied == ("decoder.weight",)
    assert same_memory(tied.encoder.weight, tied.decoder.weight)


@given(st.data())
def test_overlap_is_what_writing_into_one_shows_in_the_other(data):
    """For slices of rows, whose stretches of memory are their elements."""
    base = torch.zeros(6, 2)
    rows = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)
    parts = [base[a:b] for a, b in data.draw(st.lists(rows, min_size=2, max_size=4))]
    met = {frozenset((a, b)) for group in overlapping(parts) for a in group for b in group if a < b}
    for a, one in enumerate(parts):
        for b, other in enumerate(parts[:a]):
            base.zero_()
            one.fill_(1)
            if bool(other.any()) and not same_memory(one, other):
                assert frozenset((a, b)) in met
    for group in overlapping(parts):
        stand_ins = laid_out_alike([parts[place] for place in group])
        base.zero_()
        parts[group[0]].fill_(1)
        stand_ins[0].fill_(1)
        assert all(torch.equal(parts[p], stand_in) for p, stand_in in zip(group, stand_ins, strict=True))


# Tensors without memory of their own.


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.eye(3).to_sparse())
        self.fc = nn.Linear(3, 2)


def test_a_sparse_tensor_is_refused_on_either_side_and_can_be_left_out():
    dense = nn.Module()
    dense.register_buffer("edges", torch.zeros(3, 3))
    dense.fc = nn.Linear(3, 2)
    with pytest.raises(TransferError, match=r"edges(?s:.*)the source's is a sparse_coo tensor: make it plain"):
        WeightTransfer(Graph()).apply(dense)
    with pytest.raises(TransferError, match="the target's is a sparse_coo tensor: transfer before"):
        WeightTransfer(dense).apply(Graph())
    assert WeightTransfer(Graph(), select=by_name("fc")).apply(dense).copied == ("fc.weight", "fc.bias")


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_shards_are_told_by_themselves_and_refused_as_sources(tmp_path, monkeypatch):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        sharded = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        assert not_plain(sharded[0].weight) == "DTensor"
        plan = WeightTransfer({"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4)}).plan(sharded)
        assert plan.tied == ()
        assert plan.missing == ("1.weight", "1.bias")
        assert WeightTransfer(plain).apply(sharded).coverage.tensors == (4, 4)
        assert torch.equal(sharded[1].weight.full_tensor(), plain[1].weight)
        optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
        with pytest.raises(TransferError, match=r"torch\.distributed\.checkpoint"):
            WeightTransfer(plain, load_states=True).apply(sharded, optimizer)
        with pytest.raises(TransferError, match=r"the source's is a DTensor: .* full_tensor"):
            WeightTransfer(sharded).apply(plain)
    finally:
        dist.destroy_process_group()


# What is written passes one check, whatever its dtype, parameter or buffer.


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.complex64])
def test_every_dtype_goes_onto_itself(dtype):
    def make(value: float) -> nn.Module:
        module = nn.Module()
        module.weight = nn.Parameter(torch.full((3,), value).to(dtype), requires_grad=False)
        module.register_buffer("scale", torch.full((2,), value).to(dtype))
        return module

    source, model = make(2), make(1)
    assert WeightTransfer(source.state_dict()).apply(model).copied == ("weight", "scale")
    assert bool((model.weight.to(torch.complex64) == 2).all())


def test_a_statistic_that_half_precision_cannot_hold_is_refused():
    source, model = nn.BatchNorm2d(2), nn.BatchNorm2d(2).half()
    source.running_var.fill_(1e5)
    with pytest.raises(TransferError, match="running_var: 2 of 2 values overflow float16"):
        WeightTransfer(source).apply(model)
    assert bool((model.running_var == 1).all())
    WeightTransfer(source).apply(nn.BatchNorm2d(2).bfloat16())


def test_nan_is_refused_in_complex_numbers_and_in_buffers_and_a_mask_of_infinity_is_not():
    broken = nn.Module()
    broken.weight = nn.Parameter(torch.tensor([complex(1, float("nan"))]))
    with pytest.raises(TransferError, match="weight: 1 of 2 values are NaN or infinite"):
        WeightTransfer(broken).apply(broken)
    norm = nn.BatchNorm1d(2)
    norm.running_mean[0] = float("nan")
    with pytest.raises(TransferError, match="running_mean: 1 of 2 values are NaN"):
        WeightTransfer(norm).apply(nn.BatchNorm1d(2))
    masked = nn.Module()
    masked.register_buffer("mask", torch.tensor([0, -torch.inf]))
    assert WeightTransfer(masked).apply(masked).copied == ("mask",)
