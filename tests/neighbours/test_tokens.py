"""Transformers as backbones: split before the head, their patches one by one, cached, and not shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from transferkit import freeze, replace_head
from transferkit.errors import UnsharableError
from transferkit.features import PatchFeatures, split_frozen
from transferkit.heads import adaptation_head, find_head
from transferkit.preprocessing import IMAGENET
from transferkit.transfer import by_name

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {"depth": 2, "img_size": 32, "patch_size": 8}
SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}

NETWORKS: dict[str, tuple[int, tuple[int, ...], Callable[[], nn.Module]]] = {
    "timm ViT": (32, (192,), lambda: timm.create_model("vit_tiny_patch16_224", **VIT)),
    "timm ViT, mean": (
        32,
        (192,),
        lambda: timm.create_model("vit_tiny_patch16_224", **VIT, global_pool="avg", class_token=False),
    ),
    "timm Swin": (
        56,
        (48,),
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1), num_heads=(2, 2)
        ),
    ),
    "torchvision ViT": (32, (32,), lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64)),
    "torchvision Swin": (
        56,
        (48,),
        lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 2], [7, 7]),
    ),
    "Hugging Face ViT": (
        32,
        (32,),
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(**SMALL, image_size=32, patch_size=8)
        ),
    ),
    "Hugging Face BEiT": (
        32,
        (32,),
        lambda: transformers.BeitForImageClassification(
            transformers.BeitConfig(**SMALL, image_size=32, patch_size=8)
        ),
    ),
    "Hugging Face Swin": (
        32,
        (16,),
        lambda: transformers.SwinForImageClassification(transformers.SwinConfig(**SWIN)),
    ),
}


def frozen(name: str) -> tuple[Any, int, tuple[int, ...]]:
    side, shape, build = NETWORKS[name]
    torch.manual_seed(0)
    model: Any = build()
    head = find_head(model)
    replace_head(model, lambda width: adaptation_head(width, 5, hidden=(16,)))
    freeze(model, ~by_name(f"{head.name}.*"), dropout=False)
    return model.eval(), side, shape


@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_patches_and_the_rest_are_the_model(name: str) -> None:
    model, side, shape = frozen(name)
    parts = split_frozen(model, torch.randn(2, 3, side, side))
    features = PatchFeatures(parts.backbone, pool=parts.pool, patch_size=side)
    image = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 60, 60], [30, 20, 90, 80], [50, 10, 120, 80]])
    found = features(image, boxes)
    assert found.shape == (3, *shape) and features.frozen
    pixels = features.resizing.patches(image, boxes)
    output = model(IMAGENET(pixels))
    assert torch.allclose(parts.rest(found), getattr(output, "logits", output), rtol=1e-3, atol=1e-4)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trained <= {id(parameter) for parameter in parts.rest.parameters()}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_shared_way_is_refused_with_the_reason(name: str) -> None:
    model, side, _ = frozen(name)
    parts = split_frozen(model, torch.randn(2, 3, side, side))
    with pytest.raises(UnsharableError, match=r"cannot be shared between patches: .*method='exact'"):
        PatchFeatures(parts.backbone, pool=parts.pool, method="shared", patch_size=side)
