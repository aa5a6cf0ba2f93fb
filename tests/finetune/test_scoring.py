"""Scoring takes any object with a scorer's two methods, and leaves the model as it was."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from transferkit.errors import ArgumentError
from transferkit.finetune import EpochRecord, score_images, write_results
from transferkit.scorer import ImageScorer, Scorer, calibrate, evaluate

from .tiny import IDENTITY, tiny_model, tiny_run


@dataclass
class Batch:
    pixels: Tensor
    image_index: Tensor
    boxes: Tensor


def stream() -> list[Batch]:
    """Four batches of eight patches, of three images in turn."""
    generator = torch.Generator().manual_seed(3)
    boxes = torch.tensor([[0.0, 0, 4, 4]]).expand(8, 4)
    return [
        Batch(torch.rand(8, 3, 4, 4, generator=generator) * 255, (torch.arange(8) + n) % 3, boxes)
        for n in range(4)
    ]


class Votes:
    """A scorer of one's own: the share of an image's patches that are most like a class."""

    def __init__(self) -> None:
        self.votes, self.seen = torch.zeros(3, 3), torch.zeros(3)

    def add_batch(self, probs: Tensor, image_index: Tensor, boxes: Tensor | None = None) -> None:
        self.votes.index_put_((image_index, probs.argmax(dim=1)), torch.ones(len(probs)), accumulate=True)
        self.seen += image_index.bincount(minlength=3)

    def compute(self) -> Tensor:
        return self.votes / self.seen[:, None]


def test_a_scorer_of_ones_own_fits_the_same_two_methods():
    assert isinstance(Votes(), Scorer)
    torch.manual_seed(0)
    model = tiny_model().train()
    scores = score_images(model, stream(), Votes(), IDENTITY)
    assert model.training
    expected = torch.zeros(3, 3)
    with torch.no_grad():
        for batch in stream():
            for image, logits in zip(batch.image_index, model.eval()(IDENTITY(batch.pixels)), strict=True):
                expected[image, logits.argmax()] += 1
    torch.testing.assert_close(scores, expected / expected.sum(dim=1, keepdim=True))


def test_a_network_that_gives_nan_is_reported_where_it_does():
    torch.manual_seed(0)
    model = tiny_model()
    model[-1].bias.data[1] = float("nan")
    with pytest.raises(ArgumentError, match="got nan at row 0, class 0, image 0 .* the network gives NaN"):
        score_images(model.train(), stream(), ImageScorer(3, 3), IDENTITY)
    assert model.training


def test_metrics_of_a_test_without_positives_are_json(tmp_path: Path) -> None:
    """There is no mean AP then, and a loss may be infinite: null, which programs in every language read."""

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    run = tiny_run()
    run.history.append(EpochRecord(1, math.inf, 0.5, 16, 0.1, 1.0))
    result = evaluate(
        torch.rand(4, 3), torch.zeros(4, 3, dtype=torch.bool), class_names=["background", "cat", "dog"]
    )
    returned = write_results(tmp_path, run, result, seconds={"train": math.nan})
    written = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refused)
    assert written == returned and written["mean_ap"] is None
    assert written["history"][0]["loss"] is None and written["seconds"] == {"train": None}


def test_decisions_and_scores_are_written_where_there_are_any(tmp_path: Path) -> None:
    names, run = ["background", "cat", "dog"], tiny_run()
    targets = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]])
    scores = targets + torch.rand(4, 3)
    plain = evaluate(scores, targets, class_names=names)
    write_results(tmp_path / "plain", run, plain, seconds={})
    assert not list((tmp_path / "plain").glob("[ds]*.csv"))
    calibration = calibrate(scores, targets, class_names=names)
    result = evaluate(scores, targets, class_names=names, image_ids="abcd", calibration=calibration)
    written = write_results(tmp_path, run, result, seconds={})
    assert (tmp_path / "scores.csv").read_text() == result.scores_csv()
    assert (tmp_path / "decisions.csv").read_text() == result.decisions.to_csv()
    assert written["result"]["decisions"]["classes"][0]["positives"] == 2
