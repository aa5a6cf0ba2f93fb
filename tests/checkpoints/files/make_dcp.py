"""Write the sharded checkpoint of the tests: FSDP2 on two gloo ranks, and beside it what it holds, unsharded.

torchrun --nproc_per_node 2 tests/checkpoints/files/make_dcp.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

HERE = Path(__file__).parent


def main() -> None:
    """Train one step, save the shards, and gather them."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    weights, states = get_state_dict(model, optimizer)
    for group in states["param_groups"]:  # each value takes a kilobyte
        for option in group.keys() - {"params", "lr"}:
            del group[option]
    columns = torch.arange(6.0).view(2, 3).to(torch.bfloat16)
    weights["2.columns"] = distribute_tensor(columns, mesh, [Shard(1)])
    dcp.save({"model": weights, "optim": states, "epoch": 3}, checkpoint_id=HERE / "dcp_2_ranks")
    full, whole = get_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() == 0:
        state = {name: state["momentum_buffer"] for name, state in whole["state"].items()}
        torch.save({"model": full | {"2.columns": columns}, "momentum": state}, HERE / "dcp_2_ranks.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
