"""What a notebook shows for the last line of a cell: a line or a table, never a wall of numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import transferkit as tk
from transferkit.datasets import DEMO_CLASSES, VOCDataset, write_demo_devkit


def test_reprs_are_short_and_say_what_matters(tmp_path: Path) -> None:
    write_demo_devkit(tmp_path, num_train=2, num_test=1)
    data = VOCDataset(tmp_path, class_names=DEMO_CLASSES)
    sampler = tk.MultiscaleSampler(data, patch_size=32)
    batch = next(iter(sampler))
    scorer = tk.ImageScorer(2, 3)
    scorer.add_batch(torch.full((4, 3), 0.5), torch.tensor([0, 0, 1, 1]))
    transfer = tk.WeightTransfer(nn.Linear(2, 3), select=tk.every())
    expected = {
        "MultiscaleSampler(2 images, mode 'train', minibatches of 64 patches, epoch 0)": sampler,
        f"PatchBatch(pixels (64, 3, 32, 32) uint8, {int((batch.labels > 0).sum())} with an object, of 1 images)": batch,
        f"AnnotatedImage('000001', 112 x 144 (h x w), classes {data[0].classes.tolist()})": data[0],
        "ImageScorer(num_images=2, num_classes=3, exponent=5.0, reduction='sum'; 4 patches seen)": scorer,
        "WeightTransfer(Checkpoint(the model, model: 1 layers, 9 elements), select=every(), mapping='name')": transfer,
    }
    assert {text: repr(thing) for text, thing in expected.items()} == {text: text for text in expected}


def test_results_and_reports_are_tables() -> None:
    present = torch.tensor([[True, False], [False, True]])
    result = tk.evaluate(present.double(), present, class_names=["a<b", "c"])
    assert result._repr_html_().startswith("<pre>class") and "a&lt;b" in result._repr_html_()
    plan = tk.WeightTransfer(nn.Linear(2, 3)).plan(nn.Linear(2, 3))
    assert "<table>" in plan._repr_html_()
