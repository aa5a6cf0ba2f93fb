"""Fill a cache as one of several ranks, and say what this one knows: ``fill_in_ranks.py FOLDER BROKEN FULL APART``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.features.scenes import GRID, SIDE, Scenes, features
from transferkit.distributed import process_group
from transferkit.errors import OutputError
from transferkit.features import FeatureCache, shards
from transferkit.sampler import MultiscaleSampler


def full(path: Path, write: object) -> None:
    raise OutputError("No space left on device")


if __name__ == "__main__":
    folder, broken, full_on = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with process_group(torch.device("cpu")):
        rank = torch.distributed.get_rank()
        if rank == full_on:
            shards.write_atomically = full
        disk = folder / f"disk {rank}" if sys.argv[4] == "apart" else folder
        cache = FeatureCache(disk, features(), Scenes(5, broken=broken), grid=GRID, precision=torch.float32)
        said = []
        try:
            cache.fill()
            sampler = MultiscaleSampler(
                cache, grid=GRID, patch_size=SIDE, patches_per_image=4, batch_size=4, on_bad_image="skip"
            )
            said = [sum(1 for _ in sampler), cache.patch_count(broken)]
        except OutputError as error:
            said = [str(error)]
        (folder / f"rank {rank}").write_text(f"{cache.missing()} {said}")
