"""What becomes of a training of several ranks when something goes wrong: seconds to the end, words, and how it goes on.

    python -m tests.benchmarks.rank_faults --folder DIR [--only kill ...]

Each fault strikes ``examples/pascal_voc.py`` on two ranks of the demo's scenes. "link cut" makes two network namespaces
(as root, with ``ip``), and is left out where that cannot be done.
"""

from __future__ import annotations

import argparse
import errno
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.table import Table
from transferkit.datasets import DEMO_CLASSES, write_demo_devkit

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "pascal_voc.py"
TIMEOUT = 5  # seconds, of the faults that are a matter of time


@dataclass(frozen=True)
class Fault:
    """A fault, and the flags that all ranks are started with."""

    flags: tuple[str, ...] = ()
    launch: tuple[str, ...] = ()
    told: str = "error"  # words of the line to show


FAULTS = {
    "kill": Fault(told="SIGKILL"),
    "kill, --max-restarts 1": Fault(launch=("--max-restarts", "1"), told="epochs done"),
    "SIGTERM": Fault(told="stopped;"),
    "slow step": Fault(("--timeout", str(TIMEOUT)), told="slow"),
    "slow to fill the cache": Fault(("--timeout", str(TIMEOUT), "--freeze", "features.6"), told="mAP "),
    "disk full, cache": Fault(("--freeze", "features.6"), told="every patch"),
    "disk full, run": Fault(told="error: "),
    "data differs": Fault(told="images: "),
    "seed differs": Fault(told="seed: "),
    "cache differs": Fault(("--freeze", "features.6", "--features", "cached"), told="mAP "),
    "port in use": Fault(told="did not meet"),
    "link cut": Fault(("--timeout", str(TIMEOUT)), told="slow"),
}


# In a rank: the fault is planted, then the script runs.


def strike(fault: str, rank: int, script: str) -> None:
    """Run the script with its fault on this rank."""
    from transferkit.features.shards import Shards
    from transferkit.finetune.run import Run
    from transferkit.finetune.training import Stepper

    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if rank == 1 and fault.startswith("kill") and first:
        _before(Stepper, "step", 12, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if rank == 1 and fault == "slow step":
        _before(Stepper, "step", 12, lambda: time.sleep(3 * TIMEOUT))
    if rank == 1 and fault == "slow to fill the cache":
        _before(Shards, "write", 2, lambda: time.sleep(3 * TIMEOUT))
    if rank == 1 and fault == "disk full, cache":
        _before(Shards, "write", 2, _full)
    if rank == 0 and fault == "disk full, run":
        _before(Run, "save", 2, _full)
    if rank == 1 and fault == "data differs":
        sys.argv += ["--max_train_imgs", "11"]
    if rank == 1 and fault == "seed differs":
        sys.argv += ["-r", "14"]
    if rank == 1 and fault == "cache differs":
        sys.argv += ["--cache_dir", f"{sys.argv[sys.argv.index('--results') + 1]}/elsewhere"]
    runpy.run_path(script, run_name="__main__")


def _before(owner: type, name: str, nth: int, act: Callable[[], object]) -> None:
    """Let something happen before the ``nth`` call of a method."""
    real, calls = getattr(owner, name), []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == nth:
            print(f"struck at {time.time()}", file=sys.stderr, flush=True)
            act()
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)


def _full() -> None:
    from transferkit.errors import OutputError

    raise OutputError(f"cannot write: {os.strerror(errno.ENOSPC)}; choose another disk")


# Outside: a fault's run, and the run that goes on after it.


def words(folder: Path, results: Path) -> list[str]:
    """Return the script's words."""
    return [
        *(
            "--data_dir",
            str(folder / "scenes"),
            "--weights",
            str(folder / "small.pt"),
            "--model",
            "alexnet-small",
        ),
        *("--protocol", "demo", "-b", "cpu", "--classes", ",".join(DEMO_CLASSES[1:]), "--num_workers", "0"),
        *("--results", str(results), "-e", "4"),
    ]


def started(command: list[str], **more: str) -> subprocess.Popen[str]:
    """Start a command with one thread for each rank; its output comes as one stream."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=settings, cwd=ROOT, **streams)  # type: ignore[call-overload,no-any-return]


def torchrun(*launch: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *launch]


def ranks(name: str, folder: Path) -> list[subprocess.Popen[str]]:
    """Start the ranks of a fault: one launcher of both, or one for each machine."""
    fault, results = FAULTS[name], folder / name.replace(",", "").replace(" ", "_")
    run = ["-m", "tests.benchmarks.rank_faults", "--strike", name, *words(folder, results), *fault.flags]
    if name == "port in use":
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777"}
        return [started([sys.executable, *run], RANK=str(i), LOCAL_RANK=str(i), **place) for i in range(1)]
    if name == "link cut":
        return [started(_on_host(i, run), GLOO_SOCKET_IFNAME=f"tkf{i}") for i in range(2)]
    return [started(torchrun("--standalone", "--nproc-per-node", "2", *fault.launch, *run))]


def _on_host(number: int, run: list[str]) -> list[str]:
    meet = (
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "10.78.0.1:29400",
        "--rdzv-conf",
        f"is_host={1 - number}",
    )
    launch = torchrun(
        "--nnodes", "2", "--nproc-per-node", "1", *meet, "--local-addr", f"10.78.0.{number + 1}", *run
    )
    return ["ip", "netns", "exec", f"tkf{number}", *launch]


@contextmanager
def surroundings(name: str) -> Iterator[None]:
    """Make what a fault needs around its ranks."""
    if name == "port in use":
        with socket.create_server(("127.0.0.1", 29777)):
            yield
        return
    if name == "link cut":
        made = [
            *(f"netns add tkf{i}" for i in range(2)),
            "link add tkf0 netns tkf0 type veth peer name tkf1 netns tkf1",
            *(f"-n tkf{i} addr add 10.78.0.{i + 1}/24 dev tkf{i}" for i in range(2)),
            *(f"-n tkf{i} link set {device} up" for i in range(2) for device in ("lo", f"tkf{i}")),
        ]
        try:
            for one in made:
                subprocess.run(["ip", *one.split()], check=True)
            yield
        finally:
            for i in range(2):
                subprocess.run(["ip", "netns", "del", f"tkf{i}"], check=False)
        return
    yield


def ended(name: str, processes: list[subprocess.Popen[str]]) -> tuple[float, str]:
    """Wait until the first machine's ranks have ended; return seconds since the fault, and what they said."""
    said, begun = "", time.time()
    for line in processes[0].stdout or ():
        said += line
        if line.startswith("struck at "):
            begun = float(line.split()[-1])
        if line.startswith("epoch 1 ") and name in ("SIGTERM", "link cut"):
            time.sleep(0.5)
            begun = time.time()
            if name == "SIGTERM":
                processes[0].send_signal(signal.SIGTERM)
            else:
                subprocess.run(["ip", "-n", "tkf1", "link", "set", "tkf1", "down"], check=True)
    processes[0].wait()
    took = time.time() - begun
    for other in processes[1:]:
        other.kill()
        said += other.communicate()[0]
    return took, said


def row(name: str, folder: Path) -> tuple[str, float, int, str, str]:
    """Let a fault strike, go on after it, and return the row of the table."""
    with surroundings(name):
        processes = ranks(name, folder)
        took, said = ended(name, processes)
    (folder / f"{name}.log").write_text(said)
    told = next((line for line in said.splitlines() if FAULTS[name].told in line), "-")
    results = folder / name.replace(",", "").replace(" ", "_")
    saved = results / "run.pt"
    on = [*words(folder, results), *(["--model_file", str(saved)] if saved.exists() else [])]
    again = started(torchrun("--standalone", "--nproc-per-node", "2", str(SCRIPT), *on))
    (folder / f"{name}.again.log").write_text(again.communicate()[0])
    through = processes[0].returncode == 0
    goes_on = "needs not" if through else ("yes" if again.returncode == 0 else "no")
    return name, took, processes[0].returncode, goes_on, told.strip()[:300].replace("|", "/")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_demo_devkit(folder / "scenes", num_train=12, num_test=4, seed=3)
    from transferkit.finetune import small_alexnet

    torch.manual_seed(1)
    torch.save(small_alexnet(10).state_dict(), folder / "small.pt")
    columns = {"fault": "", "seconds to the end": ".1f", "status": ".0f", "goes on": "", "words": ""}
    found = Table("Faults of two ranks on one machine", columns)
    for name in options.only:
        if name == "link cut" and os.geteuid() != 0:
            continue
        found.add(*row(name, folder))
        print(found.rows[-1], flush=True)
    print(found.markdown())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--strike"]:
        fault = sys.argv[2]
        sys.argv = [str(SCRIPT), *sys.argv[3:]]
        strike(fault, int(os.environ["RANK"]), str(SCRIPT))
    else:
        main()
