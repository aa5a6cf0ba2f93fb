"""timm for real: networks onto themselves, their classifiers, batch norms with an activation in them. See timm_modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests.neighbours import timm_modules as networks
from transferkit import replace_head
from transferkit.backbones import fold_batch_norms
from transferkit.errors import LayerNotFoundError
from transferkit.heads import find_head

FEW = ["test_resnet", "test_convnext", "test_byobnet", "test_vit", "test_efficientnet", "repvit_m0_9"]


def test_every_module_has_a_network_to_try() -> None:
    assert len(set(networks.NETWORKS)) == len(timm.list_modules())


@pytest.mark.parametrize("name", FEW)
def test_a_network_lands_on_itself_and_its_classifier_is_the_head(name: str, tmp_path: Path) -> None:
    model: Any = networks.shaken(name)
    pixels = torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])
    assert not networks.landed(model, name, tmp_path)
    assert not networks.preprocessed(model)
    assert not networks.folded(model, pixels)
    _, wrong = networks.head_of(model, pixels)
    assert not wrong


def test_two_classifiers_that_are_one_module_are_replaced_whole() -> None:
    model: Any = timm.create_model("repvit_m0_9")
    replace_head(model, 21)
    pixels = torch.randn(2, 3, 64, 64)
    assert model.train()(pixels).shape == model.eval()(pixels).shape == (2, 21)


@pytest.mark.parametrize(
    ("name", "both"),
    [
        ("volo_d1_224", ("aux_head", "head")),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("efficientformer_l1", ("head", "head_dist")),
    ],
)
def test_two_classifiers_apart_are_refused_with_both_named(name: str, both: tuple[str, str]) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    with pytest.raises(LayerNotFoundError) as refused:
        replace_head(model, 21)
    assert all(repr(each) in str(refused.value) for each in both)
    for each in both:
        replace_head(model, 21, name=each)
    assert find_head(model, both[0]).module.out_features == find_head(model, both[1]).module.out_features == 21


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_an_activation_in_a_batch_norm_stays_when_it_is_folded(activation: str) -> None:
    model = timm.create_model("test_byobnet", act_layer=activation).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.6, 1.6)
    pixels = torch.randn(2, 3, 64, 64)
    folded = fold_batch_norms(model, pixels)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(pixels), model(pixels), rtol=1e-3, atol=1e-4)
