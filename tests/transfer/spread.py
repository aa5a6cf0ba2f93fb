"""Fill a model that is spread over gloo ranks from a safetensors file.

python -m torch.distributed.run --nproc-per-node RANKS tests/transfer/spread.py FILE fill|fault|read|flat

``fault`` makes the last rank's source bad; ``read`` says how much of the file's memory each rank touched.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from transferkit.errors import TransferKitError
from transferkit.transfer import WeightTransfer


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def spread(model: nn.Module, how: str) -> nn.Module:
    if how == "tensor":
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model[0])
    fully_shard(model)
    return model


def full(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.full_tensor() if isinstance(v, DTensor) else v.clone() for k, v in model.state_dict().items()}


def main(source: str, *tasks: str) -> None:
    distributed.init_process_group("gloo")
    for task in tasks:
        if task == "flat":
            flat(source)
        elif task == "read":
            print(read(source), flush=True)
        else:
            fill(source, fault=task == "fault")
    distributed.barrier()
    Path(f"{source}.{os.environ['RANK']}.done").touch()
    os._exit(0)  # gloo's threads may abort an interpreter that ends beside them


def read(source: str) -> str:
    """Fill a model of one large layer; return how much of the file this rank mapped and touched, in bytes."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1024, 8192, bias=False))
    fully_shard(model)
    transfer = WeightTransfer(source, device="cpu")
    transfer.apply(model)
    lines = Path("/proc/self/smaps").read_text().splitlines()
    owners = [place for place, line in enumerate(lines) if line.endswith(Path(source).name)]
    touched = [next(line for line in lines[place:] if line.startswith("Rss:")) for place in owners]
    return f"touched {sum(int(line.split()[1]) for line in touched) * 1024} of {Path(source).stat().st_size}"


def flat(source: str) -> None:
    """Be refused by the older wrapper, and do what the refusal says."""
    model, one = FullyShardedDataParallel(net(), device_id=torch.device("cpu")), net()
    try:
        WeightTransfer(source).apply(model)
    except TransferKitError as error:
        assert "summon_full_params" in str(error), error
    else:
        raise AssertionError("not refused")
    WeightTransfer(source).apply(one)
    with FullyShardedDataParallel.summon_full_params(model):
        WeightTransfer(source).apply(model)
    with FullyShardedDataParallel.summon_full_params(model):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), one.parameters(), strict=True))


def fill(source: str, *, fault: bool) -> None:
    """Fill three models, or fail and leave them."""
    rank = distributed.get_rank()
    with torch.device("meta"):
        empty = net()
    torch.manual_seed(3)
    for how in ("shard", "tensor", "meta"):
        model = spread(copy.deepcopy(empty) if how == "meta" else net(), "shard" if how == "meta" else how)
        before = None if how == "meta" else full(model)
        given = WeightTransfer(source, device="cpu" if how == "meta" else None)
        if fault and rank == distributed.get_world_size() - 1:
            given.source["2"].tensors["weight"][-1] = torch.nan
        try:
            given.apply(model)
        except TransferKitError as error:
            assert fault, error
            assert all(p.is_meta for p in model.parameters()) if how == "meta" else same(before, full(model))
            continue
        assert not fault
        wanted = WeightTransfer(source)
        one = net()
        wanted.apply(one)
        assert same(one.state_dict(), full(model))
        x = torch.ones(4, 6)
        torch.testing.assert_close(model.eval()(x), one.eval()(x))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in one)


if __name__ == "__main__":
    main(*sys.argv[1:])
