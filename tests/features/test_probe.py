"""Geometry found by probing is that worked out by hand, and what cannot be shared is refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.features.networks import SamePadding, SqueezeExcite, Transformer, resnet18_stages, vgg16
from transferkit.alexnet import AlexNet
from transferkit.errors import UnsharableError
from transferkit.features import AxisGeometry, probe_geometry

SMALL = {"channels": (4, 4, 4, 4, 4), "hidden": 4}


def by_hand(*layers: tuple[int, int, int]) -> AxisGeometry:
    """Geometry of layers (kernel, stride, padding) one after the other, as every text book has it."""
    stride, field, start = 1, 1, 0  # start: first pixel that cell 0 sees
    for kernel, step, padding in layers:
        start -= padding * stride
        field += (kernel - 1) * stride
        stride *= step
    return AxisGeometry(stride, start + field / 2, field)


ALEXNET = ((11, 4, 2), (3, 2, 0), (5, 1, 2), (3, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1))
VGG = (
    *((3, 1, 1),) * 2,
    (2, 2, 0),
    *((3, 1, 1),) * 2,
    (2, 2, 0),
    *((3, 1, 1),) * 3,
    (2, 2, 0),
    *((3, 1, 1),) * 3,
    (2, 2, 0),
    *((3, 1, 1),) * 3,
)
RESNET18 = ((7, 2, 3), (3, 2, 1), *((3, 1, 1),) * 4, *((3, 2, 1), *((3, 1, 1),) * 3) * 3)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (AlexNet(**SMALL).features[:12], by_hand(*ALEXNET)),
        (AlexNet(**SMALL).features, by_hand(*ALEXNET, (3, 2, 0))),
        (vgg16(), by_hand(*VGG)),
        (resnet18_stages(), by_hand(*RESNET18)),
        (nn.Conv2d(3, 2, 1), AxisGeometry(1, 0.5, 1)),
        (nn.Conv2d(3, 2, 3, stride=2, dilation=3), AxisGeometry(2, 3.5, 7)),
        (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 2, 3, 2)), AxisGeometry(2, 1.5, 3)),
    ],
    ids=["alexnet", "alexnet-pooled", "vgg16", "resnet18", "pointwise", "dilated", "padded-at-the-end"],
)
def test_probing_finds_what_is_worked_out_by_hand(backbone: nn.Module, expected: AxisGeometry) -> None:
    geometry = probe_geometry(backbone)
    assert geometry.across == expected
    assert geometry.down == expected


def test_alexnet_in_numbers() -> None:
    assert by_hand(*ALEXNET) == AxisGeometry(stride=16, offset=15.5, receptive_field=163)


def test_both_axes_are_probed() -> None:
    geometry = probe_geometry(nn.Conv2d(3, 2, kernel_size=(5, 3), stride=(4, 2), padding=(0, 1)), size=40)
    assert geometry.down == AxisGeometry(4, 2.5, 5)
    assert geometry.across == AxisGeometry(2, 0.5, 3)


def test_a_network_that_pads_by_its_input_is_shared_only_at_sizes_that_pad_alike() -> None:
    backbone = nn.Sequential(SamePadding(3, 2, 3, stride=2), nn.ReLU(), SamePadding(2, 2, 3, stride=2))
    axis = probe_geometry(backbone, size=64).across
    assert axis == AxisGeometry(4, 3.5, 7, step=4)
    assert axis.nearest_size(203.2, like=64) == 204
    assert axis.nearest_size(10, like=64) == 64


def test_a_real_efficientnet() -> None:
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = efficientnet.EfficientNet.from_name("efficientnet-lite0")

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.net.extract_features(pixels)

    # Stem and first blocks pad (0, 1), so that the first cell's center is half a cell from the edge.
    assert probe_geometry(Backbone()).across == AxisGeometry(stride=32, offset=31.5, receptive_field=851)


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), SqueezeExcite(4)), "squeeze-and-excitation"),
        (Transformer(), "sees more than 512 pixels"),
        (Transformer(positions=16), "none twice as large along their width"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(6)), "does not grow with the image: 6 cells"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), "or all of it"),
        (nn.Flatten(), r"a map \(B, C, h, w\).*shape \(1, 12288\)"),
        (nn.Upsample(scale_factor=2), "finer than its image"),
    ],
    ids=["squeeze", "attention", "positions", "adaptive", "instance-norm", "flat", "upsampled"],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_with_its_reason(backbone: nn.Module, reason: str) -> None:
    with pytest.raises(UnsharableError, match=reason):
        probe_geometry(backbone, size=64, longest=512)


def test_the_backbone_is_left_as_it_was() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    probe_geometry(backbone, size=32)
    assert backbone.training and backbone[1].training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
