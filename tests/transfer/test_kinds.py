"""A layer's kind is what it is, told alike in a model and in its file; what is not known is other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.layers import layers_from_tensors, layers_of
from transferkit.transfer import WeightTransfer, by_kind, freeze

P = nn.utils.parametrizations


class Rms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Named(nn.Module):
    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.RMSNorm(4), "norm"),
        (nn.LayerNorm([3, 4]), "norm"),
        (nn.InstanceNorm1d(4, affine=True), "norm"),
        (nn.SyncBatchNorm(4, affine=False), "norm"),
        (Rms(4), "norm"),
        (Named(gamma=(4,), beta=(4,)), "norm"),
        (Named(weight=(4,), bias=(4,)), "norm"),
        (Named(gamma=(4,)), "other"),  # a layer scale
        (Named(weight=(4,), bias=(2,)), "other"),
        (Named(logit_scale=()), "other"),
        (nn.PReLU(), "other"),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=3), "attention"),
        (P.weight_norm(nn.Conv2d(3, 4, 3)), "conv"),
        (P.spectral_norm(nn.Linear(3, 4)), "linear"),
        (nn.utils.spectral_norm(nn.Conv1d(3, 4, 3)), "conv"),
        (nn.LSTM(3, 3), "recurrent"),
    ],
)
def test_a_model_and_its_file_agree(module: nn.Module, kind: str) -> None:
    assert layers_of(module)[0].kind == kind
    assert layers_from_tensors(module.state_dict())[0].kind == kind


def test_a_prelu_is_no_norm() -> None:
    assert layers_of(nn.PReLU(8))[0].kind == "other"


def test_every_norm_is_found_by_kind() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4), nn.LayerNorm(4), Rms(4))
    assert freeze(model, by_kind("norm")) == ("1", "2", "3")


def test_only_what_has_two_dimensions_and_is_no_norm_is_decayed() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
            "rms": nn.RMSNorm(4),
            "plane": nn.LayerNorm([4, 4]),
            "own": Named(q_bias=(4,), temperature=(), w=(4, 4)),
        }
    )
    report = WeightTransfer(model).apply(model)
    options = {"transferred": {"weight_decay": 0.1}, "new": {}}
    groups = report.parameter_groups(model, **options, decay_biases_and_norms=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(one)] for group in groups if group["weight_decay"] for one in group["params"]}
    assert decayed == {"linear.weight", "attention.in_proj_weight", "attention.out_proj.weight", "own.w"}
