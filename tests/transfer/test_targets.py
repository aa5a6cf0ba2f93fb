"""Every kind of target: wrapped, compiled, half precision, tied, on the meta device, on the GPU."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from transferkit.errors import ArgumentError, TransferError
from transferkit.transfer import WeightTransfer, by_name, every, freeze, frozen_layers


class Net(nn.Module):
    """A convolution, a norm, a non-persistent buffer, and two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.register_buffer("scale", torch.tensor([2.0]), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x):
        return self.decode(self.encode(self.norm(self.conv(x)).mean(dim=(2, 3)))) * self.scale


def donor() -> Net:
    torch.manual_seed(7)
    net = Net()
    net(torch.randn(8, 3, 6, 6))
    return net


def same(model: nn.Module, source: nn.Module) -> bool:
    state = source.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_the_whole_model_with_its_buffers():
    source, model = donor(), Net()
    model.scale.fill_(3)
    report = WeightTransfer(source.state_dict()).apply(model)
    assert same(model, source)
    assert report.tied == ("decode.weight",)
    assert "scale" not in {entry.key for entry in report.entries}
    assert model.scale == 3
    assert model.decode.weight is model.encode.weight


def test_a_live_source_leaves_non_persistent_buffers_alone_as_its_file_does():
    model, source = Net(), donor()
    model.scale, source.scale = torch.tensor([3.0, 3.0]), torch.tensor([2.0])  # as a mask for other sizes
    WeightTransfer(source).apply(model)
    assert same(model, source)
    assert model.scale.tolist() == [3, 3]


def test_prefixes_are_set_aside_on_both_sides():
    source, model = donor(), Net()
    wrapped = nn.ModuleDict({"module": model})
    report = WeightTransfer({f"_orig_mod.module.{k}": v for k, v in source.state_dict().items()}).apply(wrapped)
    assert same(model, source)
    assert "conv.weight" in report.copied
    assert any("module." in note for note in report.notes)


def test_compiled():
    source, model = donor(), Net()
    compiled = torch.compile(model, backend="eager")
    data = torch.randn(2, 3, 6, 6)
    compiled.eval()(data)
    weight = model.conv.weight
    WeightTransfer(source, select=by_name("*")).apply(compiled)
    assert same(model, source) and model.conv.weight is weight
    assert torch.allclose(compiled(data), source.eval()(data), atol=1e-6)
    assert freeze(compiled, by_name("conv", "norm")) == ("conv", "norm")
    assert frozen_layers(compiled.train()) == ("conv", "norm")


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_wrapped_in_ddp(tmp_path, monkeypatch):
    if dist.is_initialized():
        pytest.skip("a process group is already running")
    monkeypatch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        source, model = donor(), Net()
        report = WeightTransfer(source).apply(nn.parallel.DistributedDataParallel(model))
        assert same(model, source)
        assert "conv.weight" in report.copied
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision(dtype):
    source, model = donor(), Net().to(dtype)
    report = WeightTransfer(source).apply(model)
    assert {"conv.weight", "norm.running_mean"} <= set(report.cast)
    assert report.copied == ("norm.num_batches_tracked",)
    assert torch.equal(model.conv.weight, source.conv.weight.to(dtype))


def test_devices(device):
    source, model = donor(), Net().to(device)
    WeightTransfer(source.state_dict()).apply(model)
    assert same(model.cpu(), source)
    WeightTransfer(source.to(device)).apply(model)
    assert same(model, source.cpu())


def test_half_on_the_device_from_single_on_the_cpu(device):
    source, model = donor(), Net().to(device).half()
    WeightTransfer(source).apply(model)
    assert torch.equal(model.conv.weight.cpu(), source.conv.weight.half())


class TestMeta:
    def build(self) -> Net:
        with torch.device("meta"):
            net = Net()
        net.scale = torch.tensor([2.0])  # no file has it
        return net

    def test_plan_needs_no_memory(self):
        plan = WeightTransfer(donor()).plan(self.build())
        assert plan.entries == WeightTransfer(donor()).plan(Net()).entries

    def test_materialized_where_asked(self, device):
        model, source = self.build(), donor()
        WeightTransfer(source, device=device).apply(model)
        assert {tensor.device.type for tensor in model.state_dict().values()} == {device.type}
        assert same(model.cpu(), source)
        assert model.decode.weight is model.encode.weight
        assert isinstance(model.conv.weight, nn.Parameter) and model.conv.weight.requires_grad

    def test_without_a_device_it_is_refused(self):
        model = self.build()
        with pytest.raises(ArgumentError, match="pass device="):
            WeightTransfer(donor()).apply(model)
        assert all(tensor.is_meta for tensor in model.state_dict().values())

    def test_what_would_stay_empty_is_refused_by_name(self):
        model = self.build()
        model.scale = model.scale.to("meta")
        with pytest.raises(
            TransferError, match=r"left without values(?s:.*)scale \(a buffer that no file has\)"
        ):
            WeightTransfer(donor().state_dict(), device="cpu").apply(model)
        model.scale = torch.tensor([2.0])  # as the next step says
        with pytest.raises(TransferError, match=r"left without values(?s:.*)conv.weight"):
            WeightTransfer(donor(), select=~by_name("conv"), device="cpu").apply(model)
        assert all(tensor.is_meta for tensor in model.state_dict().values())

    def test_an_optimizer_of_meta_parameters_is_refused(self):
        model = self.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(ArgumentError, match="build the optimizer after"):
            WeightTransfer(donor(), device="cpu").apply(model, optimizer)

    def test_a_source_without_values_is_refused(self):
        model = Net()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(TransferError, match="no values for"):
            WeightTransfer(self.build()).apply(model)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_lazy_layers_are_refused_by_name():
    with pytest.raises(ArgumentError, match="lazy layers have no shape yet: 1"):
        WeightTransfer(donor()).plan(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))


def test_no_module_no_transfer():
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module, got dict"):
        WeightTransfer(donor()).apply({})


class TestTies:
    def test_a_file_that_leaves_the_second_name_out(self):
        state = donor().state_dict()
        del state["decode.weight"]
        report = WeightTransfer(state).apply(Net())
        assert report.tied == ("decode.weight",) and report.missing == ()

    def test_a_file_that_leaves_the_first_name_out(self):
        state = donor().state_dict()
        del state["encode.weight"]
        model = Net()
        report = WeightTransfer(state).apply(model)
        assert report.tied == ("encode.weight",)
        assert torch.equal(model.encode.weight, state["decode.weight"])

    def test_two_values_for_one_memory_are_refused(self):
        state = donor().state_dict()
        state["decode.weight"] = state["decode.weight"] + 1
        model = Net()
        before = model.encode.weight.clone()
        with pytest.raises(TransferError, match=r"ties decode.weight to encode.weight.*different values"):
            WeightTransfer(state).apply(model)
        assert torch.equal(model.encode.weight, before)

    def test_equal_values_for_one_memory_will_do(self):
        state = donor().state_dict()
        state["decode.weight"] = state["decode.weight"].clone()
        assert WeightTransfer(state).apply(Net()).tied == ("decode.weight",)

    def test_selecting_one_name_writes_the_other_and_says_so(self):
        report = WeightTransfer(donor(), select=by_name("decode")).apply(Net())
        assert report.copied == ("decode.weight", "decode.bias")
        assert report.tied == ("encode.weight",)

    def test_untied_layers_take_a_tied_source(self):
        model = Net()
        model.decode = nn.Linear(4, 4)
        source = donor()
        report = WeightTransfer(source).apply(model)
        assert report.tied == () and torch.equal(model.decode.weight, source.encode.weight)


def test_layers_of_one_model_can_change_places():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    old = [layer.weight.clone() for layer in model]
    WeightTransfer(model, mapping={"0": "1", "1": "2", "2": "0"}).apply(model)
    assert all(torch.equal(model[i].weight, old[(i + 1) % 3]) for i in range(3))


def test_one_source_may_serve_several_targets():
    source, model = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    WeightTransfer({f"fc.{k}": v for k, v in source.state_dict().items()}, mapping={"*": "fc"}).apply(model)
    assert all(torch.equal(layer.weight, source.weight) for layer in model)


def test_channels_last_stays_channels_last():
    source, model = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    stride = model.weight.stride()
    WeightTransfer(source).apply(model)
    assert model.weight.stride() == stride and torch.equal(model.weight, source.weight)


def test_a_view_that_overlaps_itself_is_refused():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.zeros(1, 3).expand(2, 3))
    with pytest.raises(TransferError, match="several elements in one place of memory"):
        WeightTransfer(nn.Linear(3, 2)).apply(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_packed_weights_are_refused_or_noted() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), nn.Linear(3, 2))

    model = net()
    model[0] = torch.ao.quantization.quantize_dynamic(net()[0], {nn.Linear})
    with pytest.raises(TransferError, match=r"'0\.0', '0\.1'; .* select=every\(\)"):
        WeightTransfer(net()).apply(model)
    report = WeightTransfer(net(), select=every()).apply(model)
    assert report.copied == ("1.weight", "1.bias")
    assert "packed weights of 2 modules were left as they are: '0.0', '0.1'" in report.notes
