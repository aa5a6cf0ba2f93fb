"""The tensor that is meant is found in whatever a model returns."""

from __future__ import annotations

import pytest
import torch

from tests.backbones import lookalikes as models
from transferkit.backbones import features_of, logits_of
from transferkit.errors import ArgumentError

PIXELS = torch.zeros(2, 3, 32, 32)


def test_logits_of_every_kind_of_output() -> None:
    for model in (
        models.ResNet(),
        models.HuggingFaceClassifier(),
        models.Inception(),
        models.DistilledDeiT().eval(),
    ):
        assert logits_of(model(PIXELS)).shape == (2, 10)
    assert logits_of((torch.zeros(2, 3),)).shape == (2, 3)


def test_features_are_pooled_ones_where_there_are() -> None:
    assert features_of(models.HuggingFaceEncoder(pooler=True)(PIXELS)).shape == (2, 8)
    assert features_of(models.HuggingFaceEncoder(pooler=False)(PIXELS)).shape == (2, 4, 8)
    assert features_of(torch.zeros(2, 8, 3, 3)).shape == (2, 8, 3, 3)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            models.DistilledDeiT().train()(PIXELS),
            r"called logits, got a tuple with tensors of shapes: \(2, 10\), \(2, 10\)",
        ),
        ("nothing", "got a str with tensors of shapes: none"),
        ({"a": torch.zeros(1), "b": torch.zeros(2)}, r"got a dict with tensors of shapes: \(1,\), \(2,\)"),
    ],
)
def test_several_tensors_are_not_chosen_between(output: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        logits_of(output)
