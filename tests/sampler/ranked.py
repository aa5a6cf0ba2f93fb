"""What one rank sees: run by torchrun for ``test_ranks.py``, writes the digests of its patches to a file."""

import sys
from pathlib import Path

import torch.distributed

MIXES = (1, 2)


def main(folder: str) -> None:
    from test_multiscale import Scenes, patches, sampler  # beside this file

    torch.distributed.init_process_group("gloo")
    for mix_images in MIXES:
        batches = []
        for batch in sampler(Scenes(7), mix_images=mix_images):
            torch.distributed.barrier()  # a rank that ended early would leave the others here
            batches.append(batch)
        lines = [str(len(batches)), *patches(batches)]
        Path(folder, f"{mix_images}_{torch.distributed.get_rank()}.txt").write_text("\n".join(lines))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
