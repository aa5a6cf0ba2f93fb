"""What one rank sees, for ``test_ranks.py``: run by torchrun, writes the digests of its patches to a file.

The number of minibatches is agreed on by all ranks, so that one which ended early would hang, and be found.
"""

import sys
from pathlib import Path

import torch
import torch.distributed

sys.path.insert(0, str(Path(__file__).parent))
from test_multiscale import Scenes, patches, sampler  # noqa: E402

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
batches = []
for batch in sampler(Scenes(7), mix_images=int(sys.argv[2])):
    torch.distributed.barrier()
    batches.append(batch)
(Path(sys.argv[1]) / f"{rank}.txt").write_text("\n".join([str(len(batches)), *patches(batches)]))
torch.distributed.destroy_process_group()
