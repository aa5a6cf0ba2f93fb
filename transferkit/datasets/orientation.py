"""Photos that were taken with the camera turned: how far, and what that does to boxes."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

_EXIF_ORIENTATION = 0x0112

# By orientation, what exif_transpose does, in order: exchange x and y, mirror x, mirror y.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1..8; 1 where it has none, or one that means nothing."""
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in _TURNS else 1


def turn_boxes(boxes: Tensor, image_size: tuple[int, int], orientation: int) -> Tensor:
    """Turn boxes together with their photo.

    Args:
        boxes: (N, 4) xyxy, pixels, on the photo as it is stored.
        image_size: ``(height, width)`` of the photo as it is stored.
        orientation: Of the photo, as :func:`exif_orientation` returns.

    Returns:
        (N, 4) on the photo as it is shown.

    Example:
        >>> turn_boxes(torch.tensor([[0.0, 0.0, 10.0, 5.0]]), (40, 60), 6)
        tensor([[35.,  0., 40., 10.]])
    """
    height, width = image_size
    exchange, mirror_x, mirror_y = _TURNS[orientation]
    if exchange:
        boxes, height, width = boxes[:, [1, 0, 3, 2]], width, height
    left, top, right, bottom = boxes.unbind(dim=1)
    if mirror_x:
        left, right = width - right, width - left
    if mirror_y:
        top, bottom = height - bottom, height - top
    return torch.stack([left, top, right, bottom], dim=1)
