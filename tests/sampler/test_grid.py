"""The grid against neon's recorded patches, and what must hold for any image and any settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from transferkit.labeling import OverlapRule, label_patches
from transferkit.sampler import PatchGrid


def test_neon_patches_and_labels_to_the_last_digit(shared: Path) -> None:
    golden = np.load(shared / "golden" / "neon_patches.npz")
    images = sorted({name.split("_")[0] for name in golden.files}, key=int)
    assert len(images) == 12
    for image in images:
        width, height = golden[f"{image}_size"].tolist()
        grid = PatchGrid()
        boxes = grid((height, width))
        assert grid.counts((height, width)) == tuple(golden[f"{image}_counts"])
        np.testing.assert_allclose(boxes.numpy(), golden[f"{image}_boxes"], rtol=0, atol=1e-9)
        objects, classes = (torch.from_numpy(golden[f"{image}_{part}"]) for part in ("rois", "roi_labels"))
        labels, matched = label_patches(boxes, objects, classes, rule=OverlapRule(0.2, 0.6))
        np.testing.assert_array_equal(labels.numpy(), golden[f"{image}_labels"])
        np.testing.assert_array_equal(matched.numpy(), golden[f"{image}_match"])
