"""The picture has everything in its place and color."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.labeling import IGNORE
from transferkit.sampler import PatchGrid, draw_patches


def test_photo_legend_and_patches() -> None:
    image = torch.full((3, 60, 80), 128, dtype=torch.uint8)
    boxes = PatchGrid()((60, 80))
    labels = torch.zeros(len(boxes), dtype=torch.int64)
    labels[[5, 50]], labels[[7]], labels[[9]] = 1, 2, IGNORE
    picture = draw_patches(image, boxes, labels, class_names=["background", "dog", "cat"], height=240, tile=40)
    assert picture.mode == "RGB"
    assert picture.width > 320
    colors = {tuple(color) for color in np.array(picture).reshape(-1, 3).tolist()}
    for color in [(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0x99, 0x99, 0x99), (0x22, 0x22, 0x22), (128, 128, 128)]:
        assert color in colors


def test_nothing_to_draw_and_nothing_that_fits() -> None:
    image = torch.zeros(3, 9, 9, dtype=torch.uint8)
    assert draw_patches(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).height >= 480
    with pytest.raises(ArgumentError, match=r"labels must be \(1,\)"):
        draw_patches(image, torch.zeros(1, 4), torch.zeros(2, dtype=torch.int64))
