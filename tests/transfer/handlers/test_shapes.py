"""Kernels and slices of another size; casts; all of it on shapes alone as on values."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from transferkit.errors import HandlerError, TransferError
from transferkit.layers import Layer
from transferkit.transfer import WeightTransfer
from transferkit.transfer.handlers import InflateKernel, ResizeKernel


def apply(source: nn.Module, target: nn.Module, *handlers):
    return WeightTransfer(source, handlers=list(handlers)).apply(target)


def test_a_grown_kernel_responds_to_the_grown_patch_as_before():
    source, target = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(3, 4, 7, stride=7)
    apply(source, target, "resize_kernel")
    patch = torch.rand(2, 3, 4, 4)
    grown = functional.interpolate(patch, size=7, mode="bilinear", align_corners=False)
    assert torch.allclose(target(grown), source(patch), atol=1e-5)


def test_a_shrunk_kernel_responds_to_smooth_patches_as_before():
    source, target = nn.Conv2d(1, 4, 7), nn.Conv2d(1, 4, 5)
    nn.init.constant_(source.weight, 0.1)
    apply(source, target, ResizeKernel(method="respond"))
    assert torch.allclose(target(torch.ones(1, 1, 5, 5)), source(torch.ones(1, 1, 7, 7)), rtol=1e-2)


def test_a_padded_kernel_computes_the_same():
    source, target = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, (5, 7), padding=(2, 3))
    apply(source, target, ResizeKernel(method="pad"))
    image = torch.rand(1, 3, 9, 9)
    assert torch.allclose(target(image), source(image), atol=1e-5)


def test_a_kernel_that_cuts_no_patches_is_resized_only_as_told():
    with pytest.raises(
        HandlerError, match=r"method='respond'\)\], for .* or handlers=\[ResizeKernel\(method='pad'\)\]"
    ):
        apply(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=2), "resize_kernel")
    with pytest.raises(TransferError, match="ResizeKernel"):
        WeightTransfer(nn.Conv2d(3, 4, 3), on_mismatch="adapt").apply(nn.Conv2d(3, 4, 1))
    with pytest.raises(TransferError, match="mismatched"):
        apply(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.ConvTranspose2d(3, 4, 4, stride=4), "resize_kernel")


@pytest.mark.parametrize("center", [False, True])
def test_an_inflated_kernel_sees_a_still_video_as_its_image(center):
    source, target = nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, (5, 3, 3))
    apply(source, target, InflateKernel(center=center))
    image = torch.rand(1, 3, 9, 9)
    video = image[:, :, None].expand(-1, -1, 5, -1, -1)
    assert torch.allclose(target(video)[:, :, 0], source(image), atol=1e-5)


def test_slices_of_a_chain_stay_consistent():
    wide = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6))
    narrow = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 6))
    report = apply(wide, narrow, "slices")
    assert torch.equal(narrow[0].weight, wide[0].weight[:3])
    assert torch.equal(narrow[1].weight, wide[1].weight[:, :3])
    assert report.copied == ("1.bias",)
    with pytest.raises(TransferError, match="mismatched"):
        apply(narrow, wide, "slices")


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (nn.MultiheadAttention(8, 2), nn.MultiheadAttention(4, 2)),
        (nn.LSTM(4, 6), nn.LSTM(4, 3)),
        (nn.ModuleDict({"qkv": nn.Linear(8, 24)}), nn.ModuleDict({"qkv": nn.Linear(4, 12)})),
        (nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(4, 6, 3, groups=2)),
        (nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3, groups=2)),
    ],
    ids=["attention", "recurrent", "fused", "groups", "to groups"],
)
def test_rows_stacked_in_blocks_are_not_sliced(wide, narrow):
    with pytest.raises(TransferError, match="mismatched"):
        apply(wide, narrow, "slices")


def test_depthwise_channels_are_sliced():
    wide, narrow = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(5, 5, 3, groups=5)
    apply(wide, narrow, "slices")
    assert torch.equal(narrow.weight, wide.weight[:5])


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.tensor([0.5, 1.0]), torch.int64),
        (torch.tensor([2**40, 1]), torch.int32),
        (torch.tensor([2**24 + 1, 1]), torch.float32),
        (torch.tensor([70000, 1]), torch.float16),
        (torch.tensor([2, 1]), torch.bool),
        (torch.tensor([1j, 1 + 0j]), torch.float32),
    ],
)
def test_a_cast_that_would_change_values_is_refused(value, dtype):
    target = nn.Module()
    target.register_buffer("ids", torch.zeros(2, dtype=dtype))
    with pytest.raises(HandlerError, match=r"1 of 2 values of ids would change|imaginary part"):
        WeightTransfer({"ids": value}, handlers=["cast"]).apply(target)
    assert not target.ids.any()


def test_integers_are_cast_when_asked():
    target = nn.Linear(2, 3)
    counts = {"weight": torch.arange(6).reshape(3, 2), "bias": torch.zeros(3)}
    report = WeightTransfer(counts, handlers=["cast"]).apply(target)
    assert report.cast == ("weight",) and report.copied == ("bias",)
    assert target.weight.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    with pytest.raises(TransferError, match=r"handlers=\['cast'\]"):
        WeightTransfer(counts, on_mismatch="adapt").apply(target)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_are_those_of_the_values(device):
    conv = Layer(0, "", "conv", {"weight": torch.rand(4, 3, 5, 5, device=device)})
    wanted = Layer(0, "", "conv", {"weight": torch.rand(4, 3, 8, 6, device=device)})
    made = ResizeKernel(method="respond")(conv, wanted)
    assert made is not None and made["weight"].shape == (4, 3, 8, 6)
    assert made["weight"].device.type == device
