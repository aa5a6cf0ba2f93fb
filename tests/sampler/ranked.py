"""What one rank sees: run by torchrun for ``test_ranks.py``, writes the digests of its patches to a file."""

import sys
from pathlib import Path
from typing import Any

import torch.distributed

STREAMS: dict[str, Any] = {
    "a grid": {"mix_images": 1},
    "a grid, mixed": {"mix_images": 2},
    "random positions, by region": {"grid": None, "mix_images": 2, "patch_size": 32, "patches_per_image": 6},
}


def stream(name: str) -> Any:
    from test_multiscale import Scenes, sampler  # beside this file
    from test_regions import ArrayReader, anywhere, bands, item

    settings = STREAMS[name]
    if "grid" not in settings:
        return sampler(Scenes(7), **settings)
    data = [item(ArrayReader(bands(seed=seed))) for seed in range(7)]
    return sampler(data, **settings, proposals=anywhere, batch_size=4)


def main(folder: str) -> None:
    from test_multiscale import patches

    torch.distributed.init_process_group("gloo")
    for name in STREAMS:
        batches = []
        for batch in stream(name):
            torch.distributed.barrier()  # a rank that ended early would leave the others here
            batches.append(batch)
        lines = [str(len(batches)), *patches(batches)]
        Path(folder, f"{name}_{torch.distributed.get_rank()}.txt").write_text("\n".join(lines))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
