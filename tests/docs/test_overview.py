"""The picture at the top of the documentation can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from transferkit.alexnet import AlexNet
from transferkit.datasets import DEMO_CLASSES, VOCDataset, write_demo_devkit


def test_the_overview_has_a_panel_for_each_digit_of_a_scene(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: plots)")
    from tests.docs.overview import maps_of, overview

    write_demo_devkit(tmp_path, num_train=1, num_test=6)
    scenes = VOCDataset(tmp_path, image_set="test", class_names=DEMO_CLASSES)
    scene = max(scenes, key=lambda scene: len(scene.classes))
    torch.manual_seed(0)
    model = AlexNet(len(DEMO_CLASSES), channels=(4, 4, 4, 4, 4), hidden=8, stem=(5, 2, 2), pooled=3)
    maps = maps_of(model, scene.image)
    assert maps.shape == (len(DEMO_CLASSES), *scene.image.shape[1:])

    panels = overview(scene, DEMO_CLASSES, maps).axes
    assert len(scene.classes) > 1 and len(panels) == 2 + len(scene.classes)
    boxes = [len(axes.patches) for axes in panels]
    assert boxes[0] == 2 * len(scene.classes) and boxes[1] >= len(scene.classes)
    assert boxes[2:] == [1] * len(scene.classes)
