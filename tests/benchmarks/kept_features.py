"""Heads trained and photos scored on features that are at hand, the same way whichever way the features came."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.benchmarks.plain import BATCH, positives_first
from tests.benchmarks.setting import new_head, new_optimizer


def kept(maps: Tensor) -> Tensor:
    """Return maps (P, C, h, w) as they are kept, (P, C * h * w), half precision to spare memory."""
    return maps.flatten(1).half()


def train_head(
    features: list[Tensor], labels: list[Tensor], num_classes: int, epochs: int, seed: int, count: int = 448
) -> nn.Module:
    """Return a head trained on ``count`` patches of each photo and epoch; the same choice and order for a seed.

    Args:
        features: N times (P, C * h * w), of all patches of each photo.
        labels: N times (P,).
        num_classes: K.
        epochs: How many.
        seed: Of first weights, order, choice and dropout.
        count: Patches of a photo and epoch.
    """
    head = new_head(num_classes, seed)
    optimizer = new_optimizer(head)
    head.train()
    for _ in range(epochs):
        for photo in torch.randperm(len(features)).tolist():
            rows = positives_first(labels[photo], count)
            for chosen in rows.split(BATCH):
                loss = cross_entropy(head(features[photo][chosen].float()), labels[photo][chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return head.eval()


@torch.inference_mode()
def score_kept(head: nn.Module, features: list[Tensor]) -> Tensor:
    """Return the photos' scores, (N, K): the sum over their patches of probability^5."""
    head.eval()
    return torch.stack([head(mine.float()).softmax(dim=1).double().pow(5).sum(dim=0) for mine in features])
