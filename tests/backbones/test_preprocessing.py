"""Mean and std are found wherever the package keeps them, and what is only assumed is said so."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.backbones import lookalikes as models
from transferkit.alexnet import AlexNet
from transferkit.backbones import find_preprocessing, truncate
from transferkit.errors import ArgumentError
from transferkit.preprocessing import EFFICIENTNET_LITE, IMAGENET, NEON_IMAGENET, Preprocessing

HALF = (0.5, 0.5, 0.5)
WANTED = Preprocessing(HALF, (0.25, 0.25, 0.25))


class ImageClassification:
    """torchvision's preset."""

    def __init__(self, crop_size: int) -> None:
        self.crop_size, self.resize_size = [crop_size], [256]
        self.mean, self.std = list(WANTED.mean), list(WANTED.std)


class Weights(SimpleNamespace):
    """torchvision's weights: an enum whose members build their transforms."""

    def __str__(self) -> str:
        return "Some_Weights.IMAGENET1K_V1"


class ImageProcessor(SimpleNamespace):
    """Hugging Face's."""


def processor(**others: object) -> ImageProcessor:
    return ImageProcessor(image_mean=list(WANTED.mean), image_std=list(WANTED.std), **others)


def with_attribute(**attributes: object) -> nn.Module:
    model = nn.Linear(2, 2)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("source", "size", "origin"),
    [
        (with_attribute(preprocessing=WANTED), None, "its preprocessing"),
        (with_attribute(default_cfg={"mean": HALF, "std": WANTED.std}), None, "its default_cfg"),
        (
            with_attribute(pretrained_cfg={"mean": HALF, "std": WANTED.std, "input_size": (3, 96, 64)}),
            (96, 64),
            "its pretrained_cfg",
        ),
        (with_attribute(image_processor=processor()), None, "its image_processor"),
        (with_attribute(config=processor(image_size=32)), None, "its config"),
        (processor(size={"height": 96, "width": 64}), (96, 64), "its own mean and std"),
        (processor(size={"shortest_edge": 96}, crop_size=None), (96, 96), "its own mean and std"),
        (processor(rescale_factor=1 / 255), None, "its own mean and std"),
        (ImageClassification(96), (96, 96), "its own mean and std"),
        (
            Weights(transforms=partial(ImageClassification, crop_size=96)),
            (96, 96),
            "the transforms of Some_Weights.IMAGENET1K_V1",
        ),
        (
            SimpleNamespace(transforms=[object(), SimpleNamespace(mean=torch.tensor(HALF), std=WANTED.std)]),
            None,
            "its SimpleNamespace",
        ),
        (truncate(with_attribute_model := models.TimmResNet(), "layer1"), (64, 96), "its pretrained_cfg"),
        (nn.DataParallel(with_attribute_model), (64, 96), "its pretrained_cfg"),
    ],
)
def test_where_it_is_kept(source: object, size: tuple[int, int] | None, origin: str) -> None:
    found = find_preprocessing(source)
    wanted = Preprocessing(HALF, (0.4, 0.4, 0.4)) if size == (64, 96) else WANTED
    assert found == (wanted, size, origin)


def test_neon_and_lite_networks() -> None:
    assert find_preprocessing(with_attribute(preprocessing=NEON_IMAGENET)).preprocessing == NEON_IMAGENET
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="its code is not installed")
    model = code.EfficientNet.from_name("efficientnet-lite0")
    assert find_preprocessing(model) == (EFFICIENTNET_LITE, (224, 224), "known for efficientnet_lite_pytorch")
    assert find_preprocessing(torch.compile(model, backend="eager")).preprocessing == EFFICIENTNET_LITE


def test_what_is_assumed_is_said_so() -> None:
    found = find_preprocessing(models.HuggingFaceClassifier())
    assert found.preprocessing == IMAGENET
    assert str(found).endswith("HuggingFaceClassifier does not say, so ImageNet's are assumed")
    assert "AlexNet does not say" in str(find_preprocessing(AlexNet(2, channels=(1, 1, 1, 1, 1), hidden=1)))


def test_other_than_three_channels_are_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"must be three numbers each, got \(0.1,\) and \(0.3,\) in its default_cfg"
    ):
        find_preprocessing(with_attribute(default_cfg={"mean": (0.1,), "std": (0.3,)}))


def test_torchvisions_own_weights() -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    found = find_preprocessing(torchvision.models.AlexNet_Weights.DEFAULT)
    assert (found.preprocessing, found.image_size) == (IMAGENET, (224, 224))


def test_timms_own_models() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    found = find_preprocessing(timm.create_model("vit_tiny_patch16_224"))
    assert (found.preprocessing.mean, found.image_size) == (HALF, (224, 224))


class SizeDict(SimpleNamespace):
    """Hugging Face's sizes: no dict, and read like one."""

    def get(self, name: str, default: object = None) -> object:
        return getattr(self, name, default)

    def __iter__(self) -> object:
        return iter(vars(self).items())


@pytest.mark.parametrize(
    ("settings", "expected", "size"),
    [
        ({"size": SizeDict(height=96, width=64)}, WANTED, (96, 64)),
        ({"size": SizeDict(shortest_edge=80), "crop_size": SizeDict(height=64, width=64)}, WANTED, (64, 64)),
        (
            {"size": SizeDict(height=80, width=80), "crop_size": {"height": 64}, "do_center_crop": False},
            WANTED,
            (80, 80),
        ),
        ({"do_normalize": False, "do_rescale": True}, Preprocessing((0.0,) * 3, (1.0,) * 3), None),
        ({"do_rescale": False, "do_normalize": True}, Preprocessing(HALF, (0.25,) * 3, 1.0), None),
        ({"do_flip_channel_order": True}, Preprocessing(HALF, (0.25,) * 3, 255.0, "BGR"), None),
    ],
)
def test_a_processor_s_steps_are_heeded(
    settings: dict[str, object], expected: Preprocessing, size: tuple[int, int] | None
) -> None:
    for source in (processor(**settings), vars(processor(**settings))):
        found = find_preprocessing(source)
        assert (found.preprocessing, found.image_size) == (expected, size)
