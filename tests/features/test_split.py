"""A model in parts gives what it gave whole, in both modes, and where it cannot be taken apart it says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.features.networks import resnet18_stages
from transferkit.alexnet import AlexNet
from transferkit.features import UnsplittableError, probe_geometry, split_at_head, split_frozen
from transferkit.transfer import before, by_index, freeze


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def alexnet() -> AlexNet:
    return AlexNet(5, channels=(4, 4, 4, 4, 4), hidden=8, kaiming=True)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool, self.fc = resnet18_stages(2), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.pool(self.body(pixels)).flatten(1))


class Functional(nn.Module):
    """Drops out between frozen layers, where no module tells."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.conv, self.fc, self.where = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 5), where

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.conv(pixels)
        if self.where == "early":
            maps = F.dropout(maps, 0.5, self.training)
        features = F.relu(maps).mean(dim=(2, 3))
        if self.where == "late":
            features = F.dropout(features, 0.5, self.training)
        return self.fc(features)


def check(model: nn.Module, layer: str, boundary: str, seed: int = 1) -> None:
    freeze(model, before(layer))
    pixels = torch.randn(3, 3, 96, 64)
    parts = split_frozen(model, torch.randn(2, 3, 64, 64))
    assert parts.boundary == boundary
    for mode in (False, True):
        torch.manual_seed(seed)
        expected = model.train(mode)(pixels)
        with torch.no_grad():
            features = parts.pool.eval()(parts.backbone.eval()(pixels))
        torch.manual_seed(seed)
        found = parts.rest.train(mode)(features)
        torch.testing.assert_close(found, expected)
    (gradients,) = ([parameter.grad for parameter in model.parameters()],)
    assert not any(gradient is not None for gradient in gradients)
    found.sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("layer", "boundary"),
    [("features.6", "features.6"), ("features.10", "features.10"), ("classifier.1", "classifier.0"),
     ("classifier.6", "classifier.0")],  # dropout before a frozen layer is random too, so it is the rest's
)  # fmt: skip
def test_the_parts_give_what_the_model_gives_in_both_modes(layer: str, boundary: str) -> None:
    check(alexnet(), layer, boundary)


def test_what_is_trained_is_no_part_of_what_is_frozen() -> None:
    model = alexnet()
    freeze(model, before("classifier.6"))
    parts = split_frozen(model, torch.randn(2, 3, 64, 64))
    names = [name for part in (parts.backbone, parts.pool) for name in part.state_dict()]
    assert {name.split(".")[0] for name in names} == {"features"}


def test_a_residual_network_splits_between_its_blocks() -> None:
    check(ResNet(), "fc", "fc")


def test_the_backbone_ends_before_the_last_pooling() -> None:
    model = alexnet()
    freeze(model, before("classifier.1"))
    assert probe_geometry(split_frozen(model, torch.randn(2, 3, 64, 64)).backbone).across.stride == 16


def test_a_norm_layer_that_follows_its_minibatches_begins_the_rest() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    for parameter in model[:2].parameters():
        parameter.requires_grad_(False)
    assert split_frozen(model, torch.randn(2, 3, 16, 16)).boundary == "1"
    freeze(model, by_index(0, 1))
    assert split_frozen(model, torch.randn(2, 3, 16, 16)).boundary == "5"


@pytest.mark.parametrize("model_name", ["alexnet", "resnet"])
def test_at_the_head_a_model_splits_whatever_is_frozen(model_name: str) -> None:
    model = alexnet() if model_name == "alexnet" else ResNet()
    parts = split_at_head(model, torch.randn(2, 3, 64, 64))
    assert parts.boundary == {"alexnet": "classifier.1", "resnet": "fc"}[model_name]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            parts.rest.eval()(parts.pool.eval()(parts.backbone.eval()(pixels))), model.eval()(pixels)
        )


@pytest.mark.parametrize(
    ("model", "frozen", "reason"),
    [
        (alexnet(), False, "trained from 'features.0' on, and no map"),
        (alexnet(), True, "nothing in AlexNet is trained"),
        (Functional("early"), "fc", "cannot be taken apart before 'fc'"),
        (Functional("late"), "fc", "cannot be taken apart before 'fc'"),
    ],
)
def test_what_cannot_be_split_says_why(model: nn.Module, frozen: object, reason: str) -> None:
    if frozen:
        freeze(model, before("fc") if frozen == "fc" else None)
    for module in model.modules():
        if frozen is True and isinstance(module, nn.Dropout):
            module.p = 0
    with pytest.raises(UnsplittableError, match=reason):
        split_frozen(model, torch.randn(2, 3, 64, 64))


def test_the_model_is_left_as_it_was() -> None:
    model = alexnet().train()
    names, hooks = list(model.state_dict()), sum(len(module._forward_hooks) for module in model.modules())
    freeze(model, before("classifier.1"))
    split_frozen(model, torch.randn(2, 3, 64, 64))
    assert all(module.training for module in model.modules())
    assert list(model.state_dict()) == names
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


class Tokens(nn.Module):
    """A transformer in small: no map leads to its class token by modules alone."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.embed = nn.Conv2d(3, 8, 8, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(pixels).flatten(2).mT
        return self.head(self.block(torch.cat([self.cls.expand(len(pixels), -1, -1), tokens], 1))[:, 0])


def test_a_transformer_is_split_at_its_class_token() -> None:
    model = Tokens().requires_grad_(False)
    model.head.requires_grad_(True)
    pixels = torch.randn(2, 3, 32, 32)
    parts = split_frozen(model, pixels)
    features = parts.pool(parts.backbone(pixels))
    assert features.shape == (2, 8) and parts.boundary == "head"
    assert torch.allclose(parts.rest(features), model(pixels), atol=1e-5)
