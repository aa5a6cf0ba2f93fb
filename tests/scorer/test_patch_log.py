"""The log of all patches gives an ImageScorer's scores and an image's patches back."""

from __future__ import annotations

import math

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.scorer import ImageScorer, PatchLog, Scorer


def test_same_scores_as_an_image_scorer_and_patches_by_image():
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(50, 3, generator=generator)
    image_index = torch.randint(4, (50,), generator=generator)
    boxes = torch.rand(50, 4, generator=generator).cumsum(dim=1)
    log = PatchLog(5, 3)
    assert isinstance(log, Scorer)
    for rows in torch.arange(50).split(7):
        log.add_batch(probs[rows], image_index[rows], boxes[rows])
    for _ in range(2):  # before and after patches() has put them in order
        for exponent, reduction in [(5, "sum"), (1, "mean"), (math.inf, "sum")]:
            scorer = ImageScorer(5, 3, exponent, reduction)
            scorer.add_batch(probs, image_index)
            torch.testing.assert_close(log.compute(exponent, reduction), scorer.compute(), rtol=1e-12, atol=0)
            in_logs = log.compute(exponent, reduction, log=True)
            torch.testing.assert_close(in_logs, scorer.compute(log=True), rtol=1e-12, atol=1e-15)
        for image in range(5):
            found = log.patches(image)
            assert torch.equal(found[0], probs[image_index == image])
            assert torch.equal(found[1], boxes[image_index == image])


def test_may_be_read_and_added_to_in_turn():
    log = PatchLog(2, 1)
    assert log.patches(1)[0].shape == (0, 1)
    log.add_batch(torch.tensor([[0.5]]), torch.tensor([1]), torch.zeros(1, 4))
    assert len(log.patches(1)[0]) == 1
    log.add_batch(torch.tensor([[0.2], [0.3]]), torch.tensor([0, 1]), torch.zeros(2, 4))
    assert log.patches(1)[0][:, 0].tolist() == pytest.approx([0.5, 0.3])
    assert log.patches(0)[0][:, 0].tolist() == pytest.approx([0.2])


def test_needs_boxes():
    with pytest.raises(ArgumentError, match="boxes must be given"):
        PatchLog(2, 1).add_batch(torch.tensor([[0.5]]), torch.tensor([1]))
    with pytest.raises(ArgumentError, match="not logits"):
        PatchLog(2, 1).add_batch(torch.tensor([[5.5]]), torch.tensor([1]), torch.zeros(1, 4))
