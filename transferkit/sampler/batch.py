"""What the sampler yields."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """A minibatch of patches.

    Attributes:
        pixels: (B, 3, S, S), uint8 or floating in 0..255, RGB, on the sampler's device.
        labels: (B,) int64 on the same device: class, 0 for background, ``IGNORE``.
        boxes: (B, 4) float64 on the cpu: xyxy, pixels, in the patch's image.
        image_index: (B,) int64 on the cpu: the image's place in the data set.
    """

    pixels: Tensor
    labels: Tensor
    boxes: Tensor
    image_index: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shown = int((self.labels > 0).sum())
        pixels = f"pixels {tuple(self.pixels.shape)} {str(self.pixels.dtype).removeprefix('torch.')}"
        images = len(self.image_index.unique())  # type: ignore[no-untyped-call]
        return f"PatchBatch({pixels}, {shown} with an object, of {images} images)"
