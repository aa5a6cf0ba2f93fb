"""What a scorer and an evaluation refuse, in words with a next step."""

from __future__ import annotations

import torch
from torch import Tensor

from transferkit.errors import ArgumentError

BACKGROUND = "background"  # the class that no evaluation counts

# An average of float32 probabilities may exceed 1 by a rounding.
_SLACK = 1e-6
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NOT_INTEGER = (torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_batch(
    probs: Tensor, image_index: Tensor, boxes: Tensor | None, num_images: int, num_classes: int, *, values: bool
) -> None:
    """Raise ``ArgumentError`` unless the batch fits a scorer of N images and K classes.

    Args:
        probs: (B, K) probabilities.
        image_index: (B,) integers.
        boxes: (B, 4) or ``None``.
        num_images: N.
        num_classes: K.
        values: Whether to look at the values too, which waits for their device.
    """
    problems = []
    if probs.ndim != 2 or probs.shape[1] != num_classes or not probs.is_floating_point():
        problems.append(f"probs must be (B, {num_classes}) floats, got {tuple(probs.shape)} {probs.dtype}")
    if image_index.shape != probs.shape[:1] or image_index.dtype not in _INTEGERS:
        found = f"{tuple(image_index.shape)} {image_index.dtype}"
        problems.append(f"image_index must be one integer per patch, (B,), got {found}")
    if boxes is not None and boxes.shape != (*probs.shape[:1], 4):
        problems.append(f"boxes must be one xyxy box per patch, (B, 4), got {tuple(boxes.shape)}")
    if not problems and values:
        problems = [*_wrong_images(image_index, num_images), *_wrong_probs(probs, image_index)]
        problems += [] if boxes is None else _wrong_boxes(boxes)
    if problems:
        raise ArgumentError("; ".join(problems))


def _wrong_images(image_index: Tensor, num_images: int) -> list[str]:
    wrong = (image_index < 0) | (image_index >= num_images)
    if not wrong.any():
        return []
    row = int(wrong.nonzero()[0])
    return [f"image_index must lie in 0..{num_images - 1}, got {int(image_index[row])} at row {row}"]


def _wrong_probs(probs: Tensor, image_index: Tensor) -> list[str]:
    wrong = ~((probs >= 0) & (probs <= 1 + _SLACK))  # also true for NaN
    if not wrong.any():
        return []
    row, column = (int(i) for i in wrong.nonzero()[0])
    value = float(probs[row, column])
    step = "the network gives NaN" if value != value else "give probabilities (softmax), not logits"
    place = f"row {row}, class {column}, image {int(image_index[row])}"
    return [f"probs must lie in 0..1, got {value:g} at {place} ({int(wrong.sum())} such values): {step}"]


def _wrong_boxes(boxes: Tensor) -> list[str]:
    wrong = ~(boxes.isfinite().all(dim=1) & (boxes[:, :2] <= boxes[:, 2:]).all(dim=1))
    if not wrong.any():
        return []
    row = int(wrong.nonzero()[0])
    found = [round(value, 3) for value in boxes[row].tolist()]
    return [f"boxes must be finite, xmin <= xmax and ymin <= ymax, got {found} at row {row}"]
