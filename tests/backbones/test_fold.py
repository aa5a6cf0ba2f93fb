"""A folded network computes what it did, and the network it came from is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.backbones import lookalikes as models
from transferkit.backbones import fold_batch_norms, truncate
from transferkit.errors import ArgumentError

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def with_statistics(model: nn.Module) -> nn.Module:
    """Give the batch norms statistics and weights that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1), (module.running_var, 0.5, 2), (module.weight, 0.5, 2), (module.bias, -1, 1)
            ):  # fmt: skip
                nn.init.uniform_(tensor, low, high)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@pytest.mark.parametrize("kind", [models.ResNet, models.MobileNetV2, models.EfficientNet, models.TimmResNet])
def test_the_output_is_the_same_and_no_norm_is_left(kind: type[nn.Module]) -> None:
    model = with_statistics(kind())
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model, PIXELS)
    other = torch.randn(3, 3, 96, 80)
    torch.testing.assert_close(folded(other), model(other), rtol=1e-4, atol=1e-4)
    assert norms(model) > 0 and norms(folded) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_linear_layers_take_norms_in_too() -> None:
    model = with_statistics(nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False), nn.BatchNorm1d(5)))
    folded = fold_batch_norms(model, torch.randn(4, 3, 2, 2))
    x = torch.randn(6, 3, 2, 2)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-5)
    assert norms(folded) == 0


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(conv := nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), conv),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["changed in place", "norm first", "called twice", "no statistics"],
)
def test_what_cannot_be_folded_is_left(model: nn.Module) -> None:
    model = with_statistics(model) if model[-1].__class__ is not nn.BatchNorm2d else model.eval()
    folded = fold_batch_norms(model, PIXELS)
    assert norms(folded) == norms(model) == 1
    assert torch.equal(folded(PIXELS), model(PIXELS))


class Twice(nn.Module):
    """The convolution's output is used beside its norm too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


def test_a_layer_whose_output_goes_elsewhere_too_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"Twice with its batch norms folded .* \{'conv': 'norm'\}"):
        fold_batch_norms(with_statistics(Twice()), PIXELS)


def test_a_truncated_network_is_folded_and_a_folded_one_truncated() -> None:
    model = with_statistics(models.ResNet())
    expected = truncate(model, "layer1")(PIXELS)
    first = fold_batch_norms(truncate(model, "layer1"), PIXELS)
    second = truncate(fold_batch_norms(model, PIXELS), "layer1", example=PIXELS)
    for folded in (first, second, truncate(first, "layer1")):
        torch.testing.assert_close(folded(PIXELS), expected, rtol=1e-4, atol=1e-4)
    assert norms(first.layer1) == 0
    torch.testing.assert_close(copy.deepcopy(second)(PIXELS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("example", [None, PIXELS], ids=["whole", "what comes later left out"])
def test_a_network_truncated_at_a_norm_still_ends_there(example: Tensor | None) -> None:
    backbone = truncate(with_statistics(models.ResNet()), "bn1", example=example)
    folded = fold_batch_norms(backbone, PIXELS)
    torch.testing.assert_close(folded(PIXELS), backbone(PIXELS), rtol=1e-4, atol=1e-4)
    assert isinstance(folded.bn1, nn.Identity) and norms(backbone) > 0


def test_efficientnet_lite_folds_wholly_and_pads_in_its_convolutions() -> None:
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="its code is not installed")
    model = with_statistics(code.EfficientNet.from_name("efficientnet-lite0"))
    pixels = torch.randn(1, 3, 224, 224)
    folded = fold_batch_norms(model, pixels)
    assert norms(folded) == 0
    padded = [module for module in folded.modules() if isinstance(module, nn.ZeroPad2d)]
    assert len(padded) == 5  # the stem's and those of stride 2, which pad more on one side
    assert folded._blocks[1]._depthwise_conv.padding == (0, 0)
    assert folded._blocks[2]._depthwise_conv.padding == (1, 1)
    other = torch.randn(1, 3, 192, 256)
    torch.testing.assert_close(folded(other), model(other), rtol=1e-3, atol=1e-3)


class NormAct(nn.BatchNorm2d):
    """timm's: a batch norm with an activation in it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def test_what_a_norm_does_beside_norming_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), NormAct(8), nn.Conv2d(8, 4, 1)).eval()
    net[1].running_mean.normal_()
    pixels = torch.randn(2, 3, 9, 9)
    folded = fold_batch_norms(net, pixels)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(pixels), net(pixels), atol=1e-5)
