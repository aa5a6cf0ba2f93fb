"""What a fit cannot learn from its photos, with the cause, to be told before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from transferkit.annotated import Presence
from transferkit.errors import listed
from transferkit.finetune.protocol import Protocol
from transferkit.labeling import label_patches
from transferkit.sampler._source import teller_of

_LOOKED_AT = 200  # photos with boxes; their labels take a second


def prospects(
    photos: Any, truth: Presence, class_names: tuple[str, ...], protocol: Protocol, minibatches: int
) -> Iterator[str]:
    """Yield what no training on these photos can bring."""
    shown = zip(class_names[1:], truth.present.any(dim=0).tolist()[1:], strict=True)
    if without := [name for name, is_shown in shown if not is_shown]:
        yield f"no photo shows {listed(without)}: scores of such a class mean nothing; leave it out of class_names"
    if not minibatches:
        yield "an epoch has no minibatch, so nothing is trained; the photos may be smaller than the least patch"
    boxed = torch.ones(len(photos), dtype=torch.bool) if truth.boxed is None else truth.boxed
    with_objects = (boxed & truth.present.any(dim=1)).nonzero()[:_LOOKED_AT, 0].tolist()
    if with_objects and not any(_positive(photos, place, protocol) for place in with_objects):
        yield (
            f"no patch of the first {len(with_objects)} photos with boxes shows an object by {protocol.rule}, so no "
            f"patch teaches a class; {_cause(photos, with_objects)}"
        )


def _positive(photos: Any, place: int, protocol: Protocol) -> bool:
    """Tell whether the rule finds an object in any patch of a photo."""
    patches, (boxes, classes, *flags) = _patches(photos, place, protocol), _objects(photos, place)
    difficult, truncated = (*flags, None, None)[:2]
    labels = label_patches(
        patches, boxes, classes, rule=protocol.rule, difficult=difficult, truncated=truncated
    ).labels
    return bool((labels > 0).any())


def _cause(photos: Any, places: list[int]) -> str:
    boxes = torch.cat([torch.as_tensor(_objects(photos, place)[0]).reshape(-1, 4) for place in places])
    if boxes.numel() and float(boxes.max()) <= 2:
        return "the boxes lie within 0..1: multiply them by the photos' width and height, since boxes are in pixels"
    side = float((boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt().median())
    return (
        f"the boxes' median side is {side:.0f} pixels: see that they are xyxy in pixels, or change grid or rule"
    )


def _patches(photos: Any, place: int, protocol: Protocol) -> Tensor:
    told = teller_of(photos, place, "image_size")
    if told:
        return protocol.grid(told[0].image_size(told[1]))
    item = photos[place]
    known: Tensor | None = getattr(item, "patches", None)  # of a cache of features
    return protocol.grid(tuple(item.image.shape[-2:])) if known is None else known


def _objects(photos: Any, place: int) -> tuple[Tensor, ...]:
    told = teller_of(photos, place, "objects")
    if told:
        found: tuple[Tensor, ...] = told[0].objects(told[1])
        return found
    item = photos[place]
    flags = (getattr(item, name, None) for name in ("difficult", "truncated"))
    return item.boxes, item.classes, *flags
