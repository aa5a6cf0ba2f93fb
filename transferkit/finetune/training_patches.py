"""A look at what the sampler makes of a training photo."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from transferkit.sampler import MultiscaleSampler


@dataclass(frozen=True)
class TrainingPatches:
    """The patches of one training photo, as the network is given them.

    Attributes:
        image: (3, H, W) uint8.
        boxes: (P, 4) xyxy, pixels.
        labels: (P,) int64.
        crops: (P, 3, S, S) uint8.
        objects: (N, 4) xyxy, pixels.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    crops: Tensor
    objects: Tensor


def look_at_patches(sampler: MultiscaleSampler, dataset: Any, minibatches: int = 20) -> TrainingPatches:
    """Return the patches of the photo with most object patches among those of the next minibatches.

    The sampler is left where it was.

    Args:
        sampler: In training mode, over ``dataset``.
        dataset: Items like ``AnnotatedImage``.
        minibatches: How many to look through.
    """
    state = sampler.state_dict()
    seen = list(islice(sampler, minibatches))
    sampler.load_state_dict(state)
    image_index = torch.cat([batch.image_index for batch in seen])
    labels = torch.cat([batch.labels.cpu() for batch in seen])
    image = int((image_index[labels > 0] if (labels > 0).any() else image_index).mode().values)
    rows = image_index == image
    item = dataset[image]
    return TrainingPatches(
        image=item.image,
        boxes=torch.cat([batch.boxes for batch in seen])[rows],
        labels=labels[rows],
        crops=torch.cat([batch.pixels.cpu() for batch in seen])[rows].byte(),
        objects=item.boxes,
    )
