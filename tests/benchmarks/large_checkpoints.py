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
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import transferkit as tk
from transferkit.cli import main as command_line

WIDTH = 4096  # a layer of this width squared is 67 MB
ONE = "32"


def network(gigabytes: float) -> nn.Sequential:
    """Return an uninitialised network whose parameters take so much memory once they are written."""
    count = max(33, round(gigabytes * 1e9 / (4 * WIDTH * WIDTH)))
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)))
    return layers.to_empty(device="cpu")


def inspect(path: Path, gigabytes: float) -> None:
    command_line(["inspect", str(path), "--match", ONE])


def one_layer(path: Path, gigabytes: float) -> None:
    layer = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, bias=False)
    tk.transfer_layer(layer, tk.read_checkpoint(path)[ONE])


def transferkit_all(path: Path, gigabytes: float) -> None:
    tk.WeightTransfer(tk.read_checkpoint(path)).apply(network(gigabytes))


def torch_all(path: Path, gigabytes: float) -> None:
    is_torch = path.suffix == ".pt"
    state = torch.load(path, weights_only=True) if is_torch else load_file(path)
    network(gigabytes).load_state_dict(state)


def torch_all_mapped(path: Path, gigabytes: float) -> None:
    network(gigabytes).load_state_dict(torch.load(path, weights_only=True, mmap=True))


TASKS: dict[str, Callable[[Path, float], None]] = {
    "inspect": inspect,
    "one layer": one_layer,
    "transferkit, all": transferkit_all,
    "torch.load + load_state_dict": torch_all,
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


def measure(task: str, path: Path, gigabytes: float) -> dict[str, float]:
    """Run one task in a process of its own and return its figures."""
    command = [sys.executable, "-m", "tests.benchmarks.large_checkpoints", "--task", task, "--path", str(path)]
    begun = time.perf_counter()
    done = subprocess.run([*command, "--gigabytes", str(gigabytes)], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"process": time.perf_counter() - begun}


def write_files(folder: Path, gigabytes: float) -> list[Path]:
    model = network(gigabytes)
    for number, parameter in enumerate(model.parameters()):
        parameter.data.fill_(number)
    save_file(model.state_dict(), folder / "large.safetensors")
    torch.save(model.state_dict(), folder / "large.pt")
    return [folder / "large.safetensors", folder / "large.pt"]


def run(gigabytes: float, folder: Path) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gigabytes} GB")
    print(f"{'file':14}{'task':36}{'seconds':>9}{'cpu s':>9}{'process s':>11}{'peak MB':>9}{'own MB':>9}")
    for path in write_files(folder, gigabytes):
        for task in TASKS:
            if path.suffix != ".pt" and "mmap" in task:
                continue
            found = measure(task, path, gigabytes)
            name = task.replace("torch.load", "load_file") if path.suffix != ".pt" else task
            times = f"{found['seconds']:9.2f}{found['cpu']:9.2f}{found['process']:11.2f}"
            print(f"{path.suffix:14}{name:36}{times}{found['resident']:9.0f}{found['own']:9.0f}", flush=True)
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--folder", type=Path, help="where to write, a temporary folder if not given")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        with memory_watch() as peak:
            begun, begun_cpu = time.perf_counter(), time.process_time()
            TASKS[options.task](options.path, options.gigabytes)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
        print(json.dumps({"seconds": seconds, "cpu": cpu, **peak}))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(options.gigabytes, Path(folder))


if __name__ == "__main__":
    main()
