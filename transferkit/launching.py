"""What started this process: its place among others as torchrun, srun and mpirun tell it."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
from collections.abc import Mapping
from pathlib import Path

from transferkit.errors import ArgumentError


def local_rank() -> int | None:
    """Return this process's rank among those that a launcher started on this machine; ``None`` without one."""
    place = os.environ.get("LOCAL_RANK") or (launched() or {}).get("LOCAL_RANK")
    return None if place is None else int(place)


_LAUNCHERS = {  # their variables for RANK, WORLD_SIZE and LOCAL_RANK
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    # Not SLURM_NTASKS, which sbatch gives to its script too, one process for all tasks.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def launcher() -> str | None:
    """Return what started this process and others, ``"torchrun"``, ``"srun"`` or ``"mpirun"``; ``None`` without."""
    for name, (rank, ranks, local) in _LAUNCHERS.items():
        if {rank, ranks, local} <= os.environ.keys() and (name == "torchrun" or os.environ[ranks] != "1"):
            return name
    return None


def launched() -> dict[str, str] | None:
    """Return this process's RANK, WORLD_SIZE and LOCAL_RANK; ``None`` without a launcher."""
    name = launcher()
    names = zip(_LAUNCHERS["torchrun"], _LAUNCHERS[name], strict=True) if name else ()
    return {own: os.environ[told] for own, told in names} or None


def meeting_point(place: Mapping[str, str]) -> dict[str, str]:
    """Return MASTER_ADDR and MASTER_PORT, where all processes of a launcher meet."""
    known = os.environ
    job = [known.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "OMPI_MCA_ess_base_jobid")]
    port = known.get("MASTER_PORT") or str(20000 + sum(map(int, job)) % 10000)  # another one for every job
    address = known.get("MASTER_ADDR")
    if address is None and "SLURM_STEP_NODELIST" in known:  # such as node[007-009,12],head
        first = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", known["SLURM_STEP_NODELIST"])[0]
        address = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)
    elif address is None and known.get("OMPI_COMM_WORLD_LOCAL_SIZE") == place["WORLD_SIZE"]:
        address = "127.0.0.1"
    if address is None:
        raise ArgumentError(
            f"rank {place['RANK']} is one of {place['WORLD_SIZE']}, and nothing says where they meet; set "
            f"MASTER_ADDR to the machine of rank 0 (mpirun -x MASTER_ADDR=HOST ...), and "
            f"MASTER_PORT if {port} is in use there"
        )
    return {"MASTER_ADDR": address, "MASTER_PORT": port}


def first_start() -> float:
    """Return when torchrun first started this process, where it has restarted it since; else a time to come."""
    own = Path(
        os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    )  # in attempt_N/LOCAL_RANK of a folder of this start
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or len(own.parts) < 3:
        return math.inf
    first = own.parents[1].with_name("attempt_0")
    return first.stat().st_mtime if first.is_dir() else math.inf


def one_of_several() -> str | None:
    """Return which of several processes this evidently is, in words; ``None`` if it may well be alone."""
    place, process = launched(), multiprocessing.current_process()
    if place is not None:
        return f"rank {place['RANK']} of {place['WORLD_SIZE']}" if place["WORLD_SIZE"] != "1" else None
    of_spawn = getattr(getattr(process, "_target", None), "__module__", "") == "torch.multiprocessing.spawn"
    number = getattr(process, "_args", (None, 0))[1] if of_spawn else 0
    return f"process {number} of torch.multiprocessing.spawn" if number else None
