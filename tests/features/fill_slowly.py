"""Fill a cache, so slowly that it can be killed anywhere: ``python fill_slowly.py FOLDER IMAGES``."""

from __future__ import annotations

import sys

from tests.features.scenes import GRID, Scenes, features
from transferkit.features import FeatureCache

if __name__ == "__main__":
    cache = FeatureCache(sys.argv[1], features(), Scenes(int(sys.argv[2])), grid=GRID)
    print("ready", flush=True)
    cache.fill()
