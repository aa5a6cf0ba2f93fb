"""Run a frozen trunk, and what each patch is given alone, over pixels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transferkit.features.execution import evaluating
from transferkit.precision import mixed_precision
from transferkit.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False)
class Forward:
    """A trunk and a pool with what belongs to running them.

    Attributes:
        trunk: Maps normalised pixels (B, 3, H, W) to (B, C, h, w).
        pool: Maps (B, C, n, n) to (B, *shape).
        preprocessing: What the trunk wants done to pixels.
        amp: Half precision; ``None`` for on with cuda and off elsewhere.
        device: Where both are.
    """

    trunk: nn.Module
    pool: nn.Module
    preprocessing: Preprocessing
    amp: bool | None
    device: torch.device

    def maps(self, pixels: Tensor) -> Tensor:
        """Return the trunk's maps of pixels in 0..255."""
        # Channels last in memory: a third faster on the cpu, and what half precision wants on a GPU. Turned
        # around as bytes, before they are floats.
        pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
        with mixed_precision(self.device, self.amp):
            maps: Tensor = self.trunk(self.preprocessing(pixels))
        return maps

    def pooled(self, maps: Tensor) -> Tensor:
        """Return the features, float32, of patches whose maps these are."""
        with mixed_precision(self.device, self.amp):
            features: Tensor = self.pool(maps)
        return features.float()

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features, (B, *shape) float32, of patches that are cut already.

        A patch's features do not depend on the others, in no bit; a minibatch of one would take another path
        through matrix products, so it is made two.
        """
        if len(pixels) == 1:
            return self.pooled(self.maps(pixels.repeat(2, 1, 1, 1)))[:1]
        return self.pooled(self.maps(pixels))

    def evaluating(self) -> AbstractContextManager[None]:
        """Put trunk and pool into evaluation mode, without gradients; leave each module as it was."""
        return evaluating(self.trunk, self.pool)


def device_of(*modules: nn.Module) -> torch.device:
    """Return where the first parameter is; the cpu for modules without any."""
    return next(
        (parameter.device for module in modules for parameter in module.parameters()), torch.device("cpu")
    )
