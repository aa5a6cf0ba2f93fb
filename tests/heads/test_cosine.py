"""Cosines are cosines, and the head is found and replaced like any other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.errors import ArgumentError
from transferkit.heads import CosineLinear, cosine_head, find_head, replace_head


def test_it_is_the_cosine_by_its_definition(device: torch.device) -> None:
    head = cosine_head(8, 3, scale=4, device=device)
    features = torch.randn(5, 8, device=device)
    logits = head(features)
    by_hand = torch.stack([4 * torch.cosine_similarity(features, row[None]) for row in head.weight], dim=1)
    torch.testing.assert_close(logits, by_hand)
    assert logits.abs().max() <= 4.0001


def test_its_scale_is_learned_and_stays_positive() -> None:
    head = cosine_head(4, 2, scale=0.5)
    optimizer = torch.optim.SGD(head.parameters(), lr=1)
    features, labels = torch.eye(4)[:2], torch.tensor([0, 1])
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    assert head.log_scale.exp() > 2
    assert nn.functional.cross_entropy(head(features), labels) < 0.1


def test_features_of_nothing_have_no_direction_and_give_zero() -> None:
    assert (cosine_head(4, 2)(torch.zeros(1, 4)) == 0).all()


def test_it_is_a_head_like_any_other() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))
    replace_head(model, lambda width: cosine_head(width, 3))
    found = find_head(model)
    assert isinstance(found.module, CosineLinear) and found.in_features == 8
    assert "in_features=8, out_features=3, scale=16" in repr(model)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentError, match="scale must be positive, got 0"):
        cosine_head(4, 2, scale=0)
