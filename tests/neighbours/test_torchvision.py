"""torchvision for real: a detector's two outputs, and what a composition does to pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.transforms import v2

from transferkit import replace_head
from transferkit.backbones import find_preprocessing
from transferkit.errors import LayerNotFoundError
from transferkit.heads import find_head

SCORES, BOXES = "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"


def detector() -> Any:
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)


def loss(model: Any) -> torch.Tensor:
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([20])}
    losses: dict[str, torch.Tensor] = model.train()([torch.rand(3, 96, 96)], [target])
    return sum(losses.values(), torch.zeros(()))


def test_a_detector_s_head_scores_classes_and_is_not_replaced_alone() -> None:
    model = detector()
    assert find_head(model).name == SCORES
    with pytest.raises(LayerNotFoundError, match=f"{SCORES}.*{BOXES}"):
        replace_head(model, 21)
    replace_head(model, lambda width: FastRCNNPredictor(width, 21), name="roi_heads.box_predictor")
    assert loss(model).isfinite()


def test_each_of_a_detector_s_outputs_is_replaced_by_its_name() -> None:
    model = detector()
    replace_head(model, 21, name=SCORES)
    replace_head(model, 4 * 21, name=BOXES)
    assert loss(model).isfinite()


UNIT, BYTES = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), ((100.0, 120.0, 140.0), (50.0, 60.0, 70.0))
COMPOSED = {
    "to tensor": [
        transforms.Resize(80),
        transforms.CenterCrop(64),
        transforms.ToTensor(),
        transforms.Normalize(*UNIT),
    ],
    "scaled": [v2.ToImage(), v2.Resize((64, 48)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*UNIT)],
    "not scaled": [v2.ToImage(), v2.ToDtype(torch.float32, scale=False), v2.Normalize(*BYTES)],
    "nested": [
        v2.ToImage(),
        v2.Compose([v2.Resize(64), v2.ToDtype(torch.float32, scale=True)]),
        v2.Normalize(*UNIT),
    ],
    "converted": [v2.PILToTensor(), v2.ConvertImageDtype(torch.float32), v2.Normalize(*UNIT)],
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composition_is_read_as_it_works(name: str) -> None:
    composed, color = v2.Compose(COMPOSED[name]), (200, 60, 20)
    pixels = composed(Image.new("RGB", (64, 64), color))
    found = find_preprocessing(composed).preprocessing(torch.tensor(color, dtype=torch.uint8)[:, None, None])
    assert torch.allclose(found[:, 0, 0], pixels[:, 30, 30], atol=1e-4)
