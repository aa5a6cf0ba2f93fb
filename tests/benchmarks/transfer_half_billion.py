"""500 million parameters: ``WeightTransfer.apply`` against ``load_state_dict``, time and memory in one run.

    python -m tests.benchmarks.transfer_half_billion

Thirty linear layers of 4096 x 4096 (67 MB each, 2 GB together) and a source of the same size in memory. The two are
run in turn, so that whatever else the machine does meets both. Memory is the largest resident set during a call
above that before it; where the system does not let it be reset, it is sampled every millisecond.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks.rounds import ratios
from tests.benchmarks.table import Table, write_tables
from transferkit.transfer import WeightTransfer


def network(layers: int, width: int) -> nn.Sequential:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
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
    parser.add_argument("--width", type=int, default=4096, help="rows and columns of a layer")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, other = (network(options.layers, options.width) for _ in range(2))
    with torch.no_grad():
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            a.fill_(0.0)
            b.uniform_(-1, 1)
    source = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    del other
    count = sum(parameter.numel() for parameter in model.parameters())
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
    table = Table(
        f"{count:,} parameters, {options.threads} thread(s), {options.repeats} rounds",
        {
            "way": "",
            "seconds": ".3f",
            "of load_state_dict's time": ".3f",
            "best of best": ".3f",
            "memory, MB more": ".1f",
        },
    )
    seconds = {name: [second for second, _ in found] for name, found in results.items()}
    yardstick = seconds["load_state_dict"]
    for name, found in results.items():
        best = min(seconds[name]) / min(yardstick)
        memory = max(extra for _, extra in found) / 1e6
        table.add(name, seconds[name], ratios(seconds[name], yardstick), best, memory)
    table.notes.append(f"One layer is {options.width**2 * 4 / 1e6:.1f} MB.")
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])


if __name__ == "__main__":
    main()
