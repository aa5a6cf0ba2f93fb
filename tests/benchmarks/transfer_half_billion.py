"""500 million parameters: ``WeightTransfer.apply`` against ``load_state_dict``, time and memory in one run.

    python -m tests.benchmarks.transfer_half_billion

Thirty linear layers of 4096 x 4096 (67 MB each, 2 GB together) and a source of the same size in memory. The two are
run in turn, so that whatever else the machine does meets both. Memory is the largest resident set during a call
above that before it; where the system does not let it be reset, it is sampled every millisecond.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from transferkit.transfer import WeightTransfer

WIDTH = 4096
LAYER = WIDTH * WIDTH * 4


def network(layers: int) -> nn.Sequential:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    return model.to_empty(device="cpu")


def resident() -> int:
    """Return the resident set of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measured(call: Callable[[], object]) -> tuple[float, int]:
    """Return a call's seconds, and the bytes by which memory rose at its highest."""
    start, highest, running = resident(), [0], threading.Event()

    def watch() -> None:
        while not running.wait(0.001):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    call()
    seconds = time.perf_counter() - begun
    running.set()
    watcher.join()
    return seconds, max(0, highest[0] - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, other = network(options.layers), network(options.layers)
    with torch.no_grad():
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            a.fill_(0.0)
            b.uniform_(-1, 1)
    source = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    del other
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {options.threads} thread(s), torch {torch.__version__}")
    runs: dict[str, Callable[[], object]] = {
        "load_state_dict": lambda: model.load_state_dict(source),
        "apply": lambda: WeightTransfer(source).apply(model),
    }
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
    for name, run in runs.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        run()
        assert all(torch.equal(tensor, source[key]) for key, tensor in model.state_dict().items()), name
    for _ in range(options.repeats):
        for name, run in runs.items():
            results[name].append(measured(run))
    for name, found in results.items():
        seconds = [second for second, _ in found]
        memory = max(extra for _, extra in found)
        print(
            f"{name:16s} median {statistics.median(seconds):.3f} s, best {min(seconds):.3f} s, +{memory / 1e6:.1f} MB"
        )
    pairs = zip(results["apply"], results["load_state_dict"], strict=True)
    ratios = sorted(a[0] / b[0] for a, b in pairs)
    best = min(s for s, _ in results["apply"]) / min(s for s, _ in results["load_state_dict"])
    print(f"apply / load_state_dict: median of pairs {statistics.median(ratios):.3f}, best to best {best:.3f}")
    print(f"one layer is {LAYER / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
