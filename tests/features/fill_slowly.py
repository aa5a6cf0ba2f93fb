"""Fill a cache, an image for each line of input, so that it can be killed anywhere: ``fill_slowly.py FOLDER IMAGES``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from tests.features.scenes import GRID, Scenes, features
from transferkit.features import FeatureCache


def when_told(images: Iterable[int], *, desc: str, **_: Any) -> Iterable[int]:
    return images if desc != "features" else _when_told(images)


def _when_told(images: Iterable[int]) -> Iterator[int]:
    for image in images:
        if not sys.stdin.readline():
            break
        yield image


if __name__ == "__main__":
    cache = FeatureCache(sys.argv[1], features(), Scenes(int(sys.argv[2])), grid=GRID)
    print("ready", flush=True)
    cache.fill(progress=when_told)
