"""Fill the caches of several recipes at once, so that a photo goes through the backbone once for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from transferkit.features import FeatureCache
from transferkit.features.shared import Forward

CHUNK = 20
"""Photos whose maps are in memory at a time, some 10 MB each."""


@dataclass(frozen=True, eq=False)
class RememberingForward(Forward):
    """Runs a backbone that the recipes have in common on what it has not been shown yet.

    Attributes:
        seen: The maps, by the digest of the pixels.
    """

    seen: dict[tuple[Any, ...], Tensor]

    def maps(self, pixels: Tensor) -> Tensor:
        """Return the backbone's maps of pixels in 0..255."""
        raw = pixels.cpu().contiguous().numpy()
        key = (raw.dtype.str, raw.shape, hashlib.blake2b(raw.tobytes(), digest_size=16).digest())
        if key not in self.seen:
            self.seen[key] = super().maps(pixels)
        return self.seen[key]


def fill_together(caches: Sequence[FeatureCache], num_workers: int) -> None:
    """Fill caches of the same photos, whose features have the same backbone, preprocessing and precision."""
    seen: dict[tuple[Any, ...], Tensor] = {}
    for cache in caches:
        cache.features.forward = RememberingForward(**vars(cache.features.forward), seen=seen)
    photos = max(map(len, caches))
    chunks = -(-photos // CHUNK)
    for chunk in range(chunks):
        for cache in caches:
            cache.fill(num_workers=num_workers, rank=chunk, world_size=chunks)
        seen.clear()
