"""Label patches by the objects in them."""

from __future__ import annotations

from torch import Tensor

from transferkit.boxes import as_boxes
from transferkit.labeling.overlap_rule import OverlapRule
from transferkit.labeling.value import Objects, PatchLabels, Rule


def label_patches(
    boxes: Tensor,
    objects: Tensor,
    classes: Tensor,
    *,
    rule: Rule | None = None,
    difficult: Tensor | None = None,
    truncated: Tensor | None = None,
) -> PatchLabels:
    """Label each patch with the class of the object in it, or as background.

    Args:
        boxes: (P, 4) patches, xyxy, pixels.
        objects: (N, 4) annotated boxes, xyxy, pixels, same frame.
        classes: (N,) whole numbers from 1; 0 is the background.
        rule: When an object counts as being in a patch; ``None`` for :class:`OverlapRule`'s defaults.
        difficult: (N,) bool, for rules that treat such objects apart.
        truncated: (N,) bool, likewise.

    Returns:
        ``labels`` (P,) int64 and ``matched`` (P,) int64, on the device of ``boxes``.

    Raises:
        ArgumentError: Malformed boxes, columns that do not fit them, or a class below 1.

    Example:
        >>> import torch
        >>> patches = torch.tensor([[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 50.0]])
        >>> labels, matched = label_patches(patches, torch.tensor([[2.0, 2.0, 18.0, 18.0]]), torch.tensor([7]))
        >>> labels.tolist(), matched.tolist()
        ([7, 0], [0, -1])
    """
    boxes = as_boxes(boxes)
    objects = as_boxes(objects, "objects").to(boxes)
    return (rule or OverlapRule()).label(boxes, Objects.of(objects, classes, difficult, truncated))
