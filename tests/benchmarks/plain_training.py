"""One epoch of the yardstick's training, timed, and the features that come of it."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import plain
from tests.benchmarks.kept_features import kept
from tests.benchmarks.rounds import say
from tests.benchmarks.setting import Photos, new_head, new_optimizer


def timed_epoch(
    photos: Photos, backbone: nn.Module, num_classes: int, patches: int, workers: int, parts: int = 8
) -> dict[str, list[Any]]:
    """Train a new head for one epoch.

    Args:
        photos: To train on, with all their patches.
        backbone: Frozen.
        num_classes: K.
        patches: Of each photo.
        workers: Of the loader.
        parts: In how many parts the epoch is timed.

    Returns:
        The ``seconds`` of each part, and by photo the ``rows`` that were trained on and their ``features``.
    """
    head = new_head(num_classes)
    choose = partial(plain.positives_first, count=patches)
    count = len(photos.paths)
    found: dict[str, list[Any]] = {"seconds": [], "rows": [None] * count, "features": [None] * count}
    done, since = 0, time.perf_counter()

    def after_photo(photo: plain.Cut, maps: Tensor) -> None:
        nonlocal done, since
        found["rows"][photo.index], found["features"][photo.index] = photo.rows, kept(maps)
        done += 1
        if done % -(-count // parts) == 0 or done == count:
            found["seconds"].append(time.perf_counter() - since)
            say(f"plain, {done} of {count} photos, the last ones in {found['seconds'][-1]:.1f} s")
            since = time.perf_counter()

    data = plain.PhotoPatches(photos.paths, photos.boxes, photos.labels, choose)
    plain.train_epoch(
        backbone, head, new_optimizer(head), plain.loader(data, workers, shuffle=True), after_photo
    )
    return found


@torch.inference_mode()
def all_features(
    photos: Photos, backbone: nn.Module, epoch: dict[str, list[Any]], workers: int
) -> list[Tensor]:
    """Return the features of all patches of each photo: those of the epoch, and now those that it left out."""
    left_out = [torch.ones(len(boxes), dtype=torch.bool) for boxes in photos.boxes]
    for missing, rows in zip(left_out, epoch["rows"], strict=True):
        missing[rows] = False
    boxes, labels = (
        [of[m] for of, m in zip(all_, left_out, strict=True)] for all_ in (photos.boxes, photos.labels)
    )
    rest = plain.loader(plain.PhotoPatches(photos.paths, boxes, labels, plain.every_patch), workers)
    found = []
    for index, _, patches, _ in rest:
        known = epoch["features"][index]
        whole = known.new_empty(len(left_out[index]), known.shape[1])
        whole[epoch["rows"][index]] = known
        if len(patches):
            batches = patches.split(plain.BATCH)
            whole[left_out[index]] = torch.cat([kept(backbone(plain.normalize(batch))) for batch in batches])
        found.append(whole)
    return found
