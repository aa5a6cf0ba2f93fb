"""Fill a cache beside others who fill it too, and print how many photos this process computed: ``fill_and_count.py FOLDER``."""

from __future__ import annotations

import sys
import time

from tests.features.scenes import GRID, Scenes, features
from transferkit.features import FeatureCache

if __name__ == "__main__":
    cache = FeatureCache(sys.argv[1], features(), Scenes(10), grid=GRID)
    computed: list[int] = []
    cache.features.forward.backbone.register_forward_hook(lambda *_: computed.append(time.sleep(0.1) or 1))
    cache.fill()
    print(len(computed), cache.missing())
