"""The head of any model is found where its package puts it, or the message says what is in doubt."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.backbones import lookalikes as models
from transferkit.backbones import logits_of
from transferkit.errors import ArgumentError, LayerNotFoundError
from transferkit.heads import adaptation_head, find_head, linear_head, replace_head


@pytest.mark.parametrize("kind", models.HEADS, ids=lambda kind: kind.__name__)
def test_the_head_is_found_and_replaced(kind: type[nn.Module]) -> None:
    model = kind()
    name, width = models.HEADS[kind]
    found = find_head(model)
    assert (found.name, found.in_features) == (name, width)
    kept = {key: value for key, value in model.named_parameters() if not key.startswith(name)}
    replace_head(model, lambda width: adaptation_head(width, 3, hidden=(5,)))
    assert all(dict(model.named_parameters())[key] is value for key, value in kept.items())
    assert logits_of(model.eval()(torch.zeros(2, 3, 64, 64))).shape == (2, 3)
    for count in ("num_classes", "num_labels"):
        assert getattr(model, count, 3) == 3


def test_a_head_that_is_a_convolution_gets_one_that_works_at_every_position() -> None:
    torch.manual_seed(0)
    model = models.SqueezeNet().eval()
    head = linear_head(8, 3, weight_std=1)
    replace_head(model, head)
    x = torch.randn(2, 3, 64, 64)
    maps = model.features(x)
    by_hand = nn.functional.conv2d(maps, head.weight[:, :, None, None], head.bias).relu().mean(dim=(2, 3))
    torch.testing.assert_close(model(x), by_hand)
    replace_head(model, nn.Conv2d(8, 4, 1), name="classifier.1")
    assert model(x).shape == (2, 4)


def test_a_model_built_without_a_head_gets_one() -> None:
    model = models.TimmResNet(num_classes=0)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    assert find_head(model).in_features == 8
    replace_head(model, lambda width: linear_head(width, 3))
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_several_heads_are_named_and_each_can_be_replaced() -> None:
    with pytest.raises(
        LayerNotFoundError, match=r"Inception has several heads: 'AuxLogits.fc', 'fc'; build it with"
    ):
        find_head(models.Inception())
    with pytest.raises(LayerNotFoundError, match="DistilledDeiT has several heads: 'head', 'head_dist'"):
        find_head(models.DistilledDeiT())
    assert find_head(models.Inception(aux_logits=False)).name == "fc"
    model = models.Inception()
    for name in ("AuxLogits.fc", "fc"):
        replace_head(model, lambda width: linear_head(width, 3), name=name)
    assert [tuple(logits.shape) for logits in model.train()(torch.zeros(2, 3, 64, 64))] == [(2, 3), (2, 3)]


class Teacher(nn.Module):
    """Hugging Face's distilled DeiT, whose second head comes last."""

    def __init__(self) -> None:
        super().__init__()
        self.deit = nn.Conv2d(3, 8, 16)
        self.cls_classifier = nn.Linear(8, 10)
        self.distillation_classifier = nn.Linear(8, 10)


def test_a_distilled_head_is_not_taken_for_the_only_one() -> None:
    with pytest.raises(LayerNotFoundError, match="several heads: 'cls_classifier', 'distillation_classifier'"):
        find_head(Teacher())


class WithProjection(models.ResNet):
    """A classifier that has a projection for another purpose, defined last."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 4)


class HeadFirst(nn.Module):
    """The head is defined before the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 10)
        self.body = nn.Conv2d(3, 8, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            WithProjection(),
            "'projection' is the last one with parameters, and its head could be 'fc'; give its name",
        ),
        (models.HuggingFaceEncoder(pooler=True), "'pooler.dense' is the last one.*'layer.1' or 'pooler.dense'"),
        (models.HuggingFaceEncoder(pooler=False), "'layernorm' is the last one.*'layer.0' or 'layer.1'"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), "no linear layer to call its head"),
    ],
)
def test_where_the_last_linear_layer_is_not_the_head_nothing_is_guessed(model: nn.Module, message: str) -> None:
    with pytest.raises(LayerNotFoundError, match=message):
        find_head(model)


def test_a_head_that_is_called_so_is_found_wherever_it_is_defined() -> None:
    assert find_head(HeadFirst()).name == "fc"
    assert find_head(nn.Sequential(nn.Conv2d(3, 3, 1), models.ResNet())).name == "1.fc"


def test_a_convolution_is_not_put_where_vectors_arrive() -> None:
    with pytest.raises(
        ArgumentError, match="starts with a convolution and 'fc' of ResNet is given vectors of 8"
    ):
        replace_head(models.ResNet(), nn.Conv2d(8, 3, 1))


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_0", "vit_b_16", "swin_t", "efficientnet_b0", "vgg11"]
)
def test_torchvisions_own_models(name: str) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
        replace_head(model, lambda width: linear_head(width, 3))
        assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "efficientnet_lite0"])
def test_timms_own_models(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model(name)
    replace_head(model, lambda width: linear_head(width, 3))
    assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_efficientnet_lite_from_its_package() -> None:
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="its code is not installed")
    model = code.EfficientNet.from_name("efficientnet-lite0")
    assert find_head(model)[::2] == ("_fc", 1280)


@pytest.mark.parametrize("classes", [12, np.int64(12)])
def test_a_number_of_classes_is_a_linear_head(classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 3))
    replace_head(model, classes)
    assert model(torch.zeros(2, 4)).shape == (2, 12)


@pytest.mark.parametrize("head", [True, 2.0, "12", None])
def test_what_is_no_head_is_refused(head: object) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Linear(8, 3))
    with pytest.raises(ArgumentError, match="head must be a number of classes, a module, or a function"):
        replace_head(model, head)
    assert model[2].out_features == 3


class Detector(nn.Module):
    """torchvision's Faster R-CNN: scores and boxes, both counted in classes."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 8)
        self.box_predictor = nn.ModuleDict(
            {"cls_score": nn.Linear(8, classes), "bbox_pred": nn.Linear(8, 4 * classes)}
        )


def test_a_detector_s_scores_are_its_head_and_are_not_replaced_alone() -> None:
    model = Detector()
    assert find_head(model).name == "box_predictor.cls_score"
    with pytest.raises(LayerNotFoundError, match=r"2 layers.*cls_score.*bbox_pred"):
        replace_head(model, 5)
    replace_head(model, 5, name="box_predictor.cls_score")
    assert find_head(model).module.out_features == 5


def test_a_config_s_labels_follow_the_head() -> None:
    model = nn.Module()
    model.classifier = nn.Linear(3, 4, bias=False)
    model.config = SimpleNamespace(num_labels=4, id2label={}, label2id={}, problem_type="regression")
    head = replace_head(model, 2).module
    config = model.config
    assert head.bias is None  # as what builds the model again from its configuration will have it
    assert (config.num_labels, config.id2label, config.label2id, config.problem_type) == (
        2,
        {0: "LABEL_0", 1: "LABEL_1"},
        {"LABEL_0": 0, "LABEL_1": 1},
        None,
    )
