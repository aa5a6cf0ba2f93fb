"""Photos to try a benchmark on where there are none: smooth noise with a bright square that is the object."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import interpolate

from transferkit.datasets import VOC_CLASSES, write_voc_images
from transferkit.sampler import AnnotatedImage


def write_made_up_devkit(root: Path, counts: dict[str, int], image_size: tuple[int, int]) -> Path:
    """Write a VOCdevkit with so many photos in each image set; return ``root``."""
    first = 1
    for image_set, count in counts.items():
        photos = (made_up_photo(number, image_size) for number in range(first, first + count))
        write_voc_images(root / "VOCdevkit" / "VOC2007", image_set, photos, VOC_CLASSES)
        first += count
    return root


def made_up_photo(number: int, image_size: tuple[int, int]) -> AnnotatedImage:
    """Return a photo that is a pure function of its number, ``(height, width)`` pixels large."""
    height, width = image_size
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    image = interpolate(coarse, size=image_size, mode="bilinear")[0] * 100
    top, left, side = height // 6, width // 4, min(image_size) * 5 // 8
    image[number % 3, top : top + side, left : left + side] += 150
    return AnnotatedImage(
        image=image.to(torch.uint8),
        boxes=torch.tensor([[left, top, left + side, top + side]], dtype=torch.float64),
        classes=torch.tensor([1 + number % 3]),
        difficult=torch.tensor([False]),
        truncated=torch.tensor([False]),
        id=f"{number:06d}",
    )
