"""Codes of quantized weights never become weights without their scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.errors import HandlerError, TransferError
from transferkit.transfer import WeightTransfer

CODES = [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2]
SCALES = [
    "fc.weight_scale", "fc.weight_scale_inv", "fc.scales", "fc.weight_zero_point", "fc.absmax",
    "fc.weight.absmax", "fc.weight_quantizer._amax", "fc.qzeros", "fc.weight_scale_2",
]  # fmt: skip


def model() -> nn.Module:
    return nn.ModuleDict({"fc": nn.Linear(3, 2)})


def quantized(scale: str, dtype: torch.dtype = torch.int8) -> dict[str, torch.Tensor]:
    return {"fc.weight": torch.ones(2, 3).to(dtype), "fc.bias": torch.zeros(2), scale: torch.full((2, 1), 0.01)}


@pytest.mark.parametrize(
    "options", [{}, {"on_mismatch": "adapt"}, {"handlers": ["cast"]}, {"handlers": ["slices"]}]
)
@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_codes_are_refused_by_name_with_the_way_out(dtype, options):
    target = model()
    old = target["fc"].weight.clone()
    with pytest.raises(
        TransferError, match=r"fc.weight(?s:.*)'fc.weight_scale'(?s:.*)dequantize the source first"
    ):
        WeightTransfer(quantized("fc.weight_scale", dtype), **options).apply(target)
    assert torch.equal(target["fc"].weight, old)


@pytest.mark.parametrize("scale", SCALES)
def test_scales_are_told_by_what_they_are_called(scale):
    with pytest.raises(TransferError, match="codes of a quantized weight"):
        WeightTransfer(quantized(scale, torch.float8_e4m3fn)).apply(model().bfloat16())


def test_an_aimed_cast_is_refused_too():
    with pytest.raises(HandlerError, match="dequantize the source first"):
        WeightTransfer(quantized("fc.weight_scale"), handlers={"fc": "cast"}).apply(model())


def test_a_handler_of_ones_own_may_dequantize():
    def dequantize(source, target):
        weight = source.tensors["weight"].float() * source.tensors["weight_scale"]
        return {"weight": weight, "bias": source.tensors["bias"]}

    target = model()
    WeightTransfer(quantized("fc.weight_scale"), handlers=[dequantize]).apply(target)
    assert torch.allclose(target["fc"].weight, torch.tensor(0.01))


def test_a_target_with_the_same_scale_takes_the_codes_as_they_are():
    target = model()
    target["fc"].register_buffer("weight_scale", torch.zeros(2, 1))
    target["fc"].weight = nn.Parameter(torch.zeros(2, 3, dtype=torch.int8), requires_grad=False)
    WeightTransfer(quantized("fc.weight_scale")).apply(target)
    assert torch.equal(target["fc"].weight, torch.ones(2, 3, dtype=torch.int8))
    assert torch.equal(target["fc"].weight_scale, torch.full((2, 1), 0.01))


def test_a_scale_beside_plain_values_is_no_matter():
    target = model()
    source = quantized("fc.scale", torch.float16)
    assert "fc.weight" in WeightTransfer(source).apply(target).cast
    target["fc"].register_buffer("mask", torch.zeros(2, dtype=torch.bool))
    mask = torch.tensor([True, False])
    assert "fc.mask" in WeightTransfer({**source, "fc.mask": mask}).apply(target).copied
