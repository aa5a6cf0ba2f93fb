"""Large files: look into one, move one layer out of it, move all of it; against torch alone.

    python -m tests.benchmarks.large_checkpoints --gigabytes 4

writes a safetensors and a torch file of that size into a temporary folder, measures, and deletes both. Every
measurement runs in a process of its own. Its seconds begin after the imports, "process s" counts them too.
Memory is the largest resident set of that process; "own" leaves out the pages of mapped files, which the
system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import transferkit as tk
from tests.benchmarks.rounds import ratios, say
from tests.benchmarks.table import Table, write_tables
from transferkit.cli import main as command_line

ONE = "32"


@dataclass(frozen=True)
class Size:
    """How large a network is: about so many GB, in layers of so many rows and columns (4096: 67 MB)."""

    gigabytes: float
    width: int

    @property
    def layers(self) -> int:
        return max(33, round(self.gigabytes * 1e9 / (4 * self.width**2)))


def network(size: Size) -> nn.Sequential:
    """Return an uninitialized network whose parameters take so much memory once they are written."""
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.Linear(size.width, size.width, bias=False) for _ in range(size.layers)))
    return layers.to_empty(device="cpu")


def inspect(path: Path, size: Size) -> None:
    command_line(["inspect", str(path), "--match", ONE])


def one_layer(path: Path, size: Size) -> None:
    layer = nn.utils.skip_init(nn.Linear, size.width, size.width, bias=False)
    tk.transfer_layer(layer, tk.read_checkpoint(path)[ONE])


def transferkit_all(path: Path, size: Size) -> None:
    tk.WeightTransfer(tk.read_checkpoint(path)).apply(network(size))


def torch_all(path: Path, size: Size) -> None:
    is_torch = path.suffix == ".pt"
    state = torch.load(path, weights_only=True) if is_torch else load_file(path)
    network(size).load_state_dict(state)


def torch_all_mapped(path: Path, size: Size) -> None:
    network(size).load_state_dict(torch.load(path, weights_only=True, mmap=True))


YARDSTICK = "torch.load + load_state_dict"
TASKS: dict[str, Callable[[Path, Size], None]] = {
    "inspect": inspect,
    "one layer": one_layer,
    "transferkit, all": transferkit_all,
    YARDSTICK: torch_all,
    "torch.load(mmap) + load_state_dict": torch_all_mapped,
}


@contextmanager
def memory_watch() -> Iterator[dict[str, float]]:
    """Sample this process's resident memory every 5 ms; the peaks, in MB, are there at the end."""
    peak = {"resident": 0.0, "own": 0.0}
    stop = threading.Event()

    def sample() -> None:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        now = {parts[0]: float(parts[1]) / 1000 for parts in lines if parts[0] in ("VmRSS:", "RssAnon:")}
        peak["resident"], peak["own"] = max(peak["resident"], now["VmRSS:"]), max(peak["own"], now["RssAnon:"])

    def watch() -> None:
        while not stop.wait(0.005):
            sample()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
        sample()
    finally:
        stop.set()
        thread.join()


def figures_of(task: str, path: Path, size: Size) -> dict[str, float]:
    """Run one task and return its figures."""
    with memory_watch() as peak:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        TASKS[task](path, size)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    return {"seconds": seconds, "cpu": cpu, **peak}


def measure(task: str, path: Path, size: Size, in_process: bool) -> dict[str, float]:
    """Run one task, in a process of its own unless told otherwise, and return its figures."""
    if in_process:
        return figures_of(task, path, size) | {"process": 0.0}
    command = [sys.executable, "-m", "tests.benchmarks.large_checkpoints", "--task", task, "--path", str(path)]
    command += ["--gigabytes", str(size.gigabytes), "--width", str(size.width)]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"process": time.perf_counter() - begun}


def write_files(folder: Path, size: Size) -> list[Path]:
    model = network(size)
    for number, parameter in enumerate(model.parameters()):
        parameter.data.fill_(number)
    save_file(model.state_dict(), folder / "large.safetensors")
    torch.save(model.state_dict(), folder / "large.pt")
    return [folder / "large.safetensors", folder / "large.pt"]


def run(size: Size, folder: Path, rounds: int, in_process: bool) -> Table:
    table = Table(
        f"{size.layers} layers of {size.width} x {size.width}, {rounds} rounds",
        {"file": "", "task": "", "seconds": ".2f", "of torch's time": ".2f", "cpu s": ".2f", "process s": ".2f",
         "peak MB": ",.0f", "own MB": ",.0f"},
    )  # fmt: skip
    for path in write_files(folder, size):
        tasks = [task for task in TASKS if path.suffix == ".pt" or "mmap" not in task]
        found: dict[str, list[dict[str, float]]] = {task: [] for task in tasks}
        for number in range(rounds):
            for task in tasks:
                say(f"round {number + 1} of {rounds}: {path.suffix}, {task}")
                found[task].append(measure(task, path, size, in_process))
        yardstick = [figures["seconds"] for figures in found[YARDSTICK]]
        for task, figures in found.items():
            name = task.replace("torch.load", "load_file") if path.suffix != ".pt" else task
            columns = [[f[key] for f in figures] for key in ("seconds", "cpu", "process", "resident", "own")]
            table.add(path.suffix, name, columns[0], ratios(columns[0], yardstick), *columns[1:])
        path.unlink()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--width", type=int, default=4096, help="rows and columns of a layer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write, a temporary folder if not given")
    parser.add_argument("--in_process", action="store_true", help="quicker to try; memory then tells nothing")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = Size(options.gigabytes, options.width)
    if options.task:
        print(json.dumps(figures_of(options.task, options.path, size)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        table = run(size, Path(folder), options.rounds, options.in_process)
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])


if __name__ == "__main__":
    main()
