"""The ways to the features of a photo's patches that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.benchmarks.kept_features import kept
from tests.benchmarks.setting import Photos
from transferkit.features import PatchFeatures

Features = Callable[[Tensor, Tensor], Tensor]
"""Takes a photo (3, H, W) uint8 and boxes (P, 4) and returns the maps (P, C, h, w) of the patches."""

EXACT = "exact"
HALF = ", bfloat16"


def shared_name(pyramid_scales: int) -> str:
    """Return the name of a shared way; 0 pyramid scales stand for one per patch size."""
    some = f"{pyramid_scales} scale{'s' * (pyramid_scales > 1)}"
    return f"shared, {some}" if pyramid_scales else "shared, a scale per patch size"


@cache
def exact(backbone: nn.Module, half: bool = False) -> Features:
    """Return the exact way, in float32 or bfloat16."""
    return PatchFeatures(backbone, method="exact", amp=half)


@cache
def shared(backbone: nn.Module, pyramid_scales: int, half: bool = False) -> Features:
    """Return the shared way with so many pyramid scales; 0 for one per patch size."""
    return PatchFeatures(backbone, method="shared", pyramid_scales=pyramid_scales or None, amp=half)


def feature_ways(backbone: nn.Module, pyramid_scales: Sequence[int], half: bool = False) -> dict[str, Features]:
    """Return the ways by name: exact, and shared with so many pyramid scales each; with ``half`` all in bfloat16."""
    found = {
        EXACT: exact(backbone, half),
        **{shared_name(n): shared(backbone, n, half) for n in pyramid_scales},
    }
    return {name + HALF * half: features for name, features in found.items()}


def has_bfloat16() -> bool:
    """Tell whether the processor computes convolutions in bfloat16."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Decoded(Dataset[tuple[int, Tensor, Tensor]]):
    """Photos as they are, with the boxes of their patches."""

    def __init__(self, photos: Photos) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return index, self.photos.data[index].image, self.photos.boxes[index]


@torch.inference_mode()
def maps_of_photos(features: Features, photos: Photos, workers: int) -> Iterator[Tensor]:
    """Yield the maps (P, C, h, w) of each photo's patches; workers decode."""
    for _, image, boxes in DataLoader(_Decoded(photos), batch_size=None, num_workers=workers):
        yield features(image, boxes)


@torch.inference_mode()
def score(features: Features, head: nn.Module, workers: int, photos: Photos) -> Tensor:
    """Return the photos' scores, (N, K): the sum over their patches of probability^5."""
    head.eval()
    every = maps_of_photos(features, photos, workers)
    return torch.stack([head(maps).softmax(dim=1).double().pow(5).sum(dim=0) for maps in every])


def kept_features(features: Features, photos: Photos, workers: int) -> list[Tensor]:
    """Return the features of all patches as they are kept, N times (P, C * h * w)."""
    return [kept(maps) for maps in maps_of_photos(features, photos, workers)]
