"""Random changes to patches, made on the device: first drawn, patch by patch, then applied to a minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from transferkit.errors import ArgumentError, require
from transferkit.sampler.regions import bits

# Rec. 601 luma, as PIL converts to gray.
_GRAY = (0.299, 0.587, 0.114)


class PatchTransform(Protocol):
    """A random change to patches. Any object with these two methods will do.

    What is drawn for a patch depends on (seed, epoch, image) alone. So all draws of an image are made at once, and
    applied in whatever minibatches its patches come. One with ``moves_pixels = True`` is applied to
    further maps, too.
    """

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random numbers for ``count`` patches, (count, D) float32 on the cpu."""
        ...

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Return (B, C, S, S) changed ``pixels``, of the same type, by (B, D) draws on the same device."""
        ...


@dataclass(frozen=True)
class RandomFlip:
    """Mirror a patch left to right.

    Attributes:
        probability: Of mirroring it.
    """

    moves_pixels: ClassVar[bool] = True

    probability: float = 0.5

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, "probability", "from 0 to 1", self.probability)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, 1), 1 to mirror and 0 not to."""
        return (torch.rand(count, 1, generator=generator) < self.probability).float()

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Return the patches, some of them mirrored."""
        values = bits(pixels)
        return torch.where(draws[:, :, None, None] > 0, values.flip(3), values).view(pixels.dtype)


@dataclass(frozen=True)
class ColorJitter:
    """Change a patch's brightness, then its contrast, then its saturation, each by a random factor.

    Attributes:
        brightness: Half-width of the factor's range: 0.2 draws from 0.8 to 1.2.
        contrast: The same, about the mean gray of the patch.
        saturation: The same, about the gray of each pixel.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            require(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, 3) factors."""
        widths = torch.tensor([self.brightness, self.contrast, self.saturation])
        return 1 + widths * (2 * torch.rand(count, 3, generator=generator) - 1)

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Return the patches with other colors, within 0..255.

        Raises:
            ArgumentError: They have no three channels, or are not of a type that holds 0..255 as photos do.
        """
        if pixels.shape[1] != 3 or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
            raise ArgumentError(
                "ColorJitter needs three channels, RGB in 0..255, uint8 or floating, got "
                f"{pixels.shape[1]} of {pixels.dtype}; leave it out, or give a transform of your own"
            )
        brightness, contrast, saturation = draws.float()[:, :, None, None, None].unbind(dim=1)  # (B, 1, 1, 1)
        values = pixels.float()
        gray = torch.einsum("bchw,c->bhw", values, torch.tensor(_GRAY, device=pixels.device))[:, None]
        # All three are linear, so together they are a part of the pixel, a part of its gray, and a constant.
        gain = brightness * contrast
        mean = gray.mean(dim=(2, 3), keepdim=True)
        offset = gain * (1 - saturation) * gray + brightness * (1 - contrast) * mean
        values = (values * (gain * saturation)).add_(offset).clamp_(0, 255)
        return values.to(pixels.dtype) if pixels.is_floating_point() else values.add_(0.5).to(pixels.dtype)
