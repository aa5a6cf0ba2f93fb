"""Read damaged files of every format, whole and inside their archives, and say what came of it.

    python -m tests.benchmarks.fuzz --count 20000

reads so many of each format, in processes of their own that can take no more than some memory. Ends with status 1 if
code ran, an error was not the library's own, a process died, or one file took more than 10 s of the processor or 1 GB.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, write_tables
from tests.checkpoints.mutated_files import families, originals, outcome, write_beside
from tests.checkpoints.test_hostile import peak_memory, reset_peak

SECONDS, MEGABYTES = 10, 1000
_ADDRESS_SPACE = 12 << 30  # bytes; torch alone takes some of them
_AT_ONCE = 10_000  # files that one process reads
# What Python reports of itself when a program starts another, or a pickle imports.
_RUNS = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "exec",
    "import",
}
FAULTS = ("code run", "foreign errors", f"over {SECONDS} s", f"over {MEGABYTES // 1000} GB", "died")


def main() -> int:
    """Read the files and print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="files of each format (default 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=families(), metavar="FORMAT", help="some of the formats")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--json", type=Path, help="where the table is written too")
    parser.add_argument(
        "--part", nargs=3, help=argparse.SUPPRESS
    )  # format, first number, end: the child's work
    options = parser.parse_args()
    if options.part:
        label, first, end = options.part
        print(json.dumps(read_part(label, options.seed, range(int(first), int(end)))))
        return 0
    counts = dict.fromkeys(("inputs", "read", "refused", *FAULTS), ",d")
    table = Table("Damaged files", {"format": "", **counts, "slowest, s": ".1f", "most, MB": ".0f"})
    failed = False
    with ThreadPoolExecutor(options.jobs) as pool:
        labels = options.only or list(families())
        for label, found in zip(
            labels, pool.map(lambda label: read_all(label, options.seed, options.count), labels), strict=True
        ):
            tally = Counter(found["tally"])
            row = [tally[column] for column in counts]
            table.add(label, *row, found["slowest"], found["most"])
            failed |= any(tally[fault] for fault in FAULTS)
            say("\n".join([f"{label}: {dict(tally)}", *found["said"]]))
    say(table.markdown())
    if options.json:
        write_tables(options.json, [table])
    return int(failed)


def read_all(label: str, seed: int, count: int) -> dict[str, Any]:
    """Read the files of one format, in one process after the other."""
    whole: dict[str, Any] = {"tally": Counter(), "slowest": 0.0, "most": 0.0, "said": []}
    for first in range(0, count, _AT_ONCE):
        end = min(first + _AT_ONCE, count)
        found = in_a_process(label, seed, first, end)
        whole["tally"].update(found["tally"])
        whole["said"] += found["said"]
        whole.update({key: max(whole[key], found[key]) for key in ("slowest", "most")})
    return whole


def in_a_process(label: str, seed: int, first: int, end: int) -> dict[str, Any]:
    """Read some files in a process of its own; if it dies, say so."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.fuzz",
        "--seed",
        str(seed),
        "--part",
        label,
        str(first),
        str(end),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_AT_ONCE * SECONDS)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    tail = " ".join(done.stderr.splitlines()[-3:])
    said = [f"{label} #{first} to {end} of seed {seed}: status {done.returncode}: {tail}"]
    return {"tally": {"died": 1, "inputs": end - first}, "slowest": 0.0, "most": 0.0, "said": said}


def read_part(label: str, seed: int, numbers: range) -> dict[str, Any]:
    """Read some files in this process and return what came of them."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    make, is_run = families()[label], label.endswith("run")
    tally: Counter[str] = Counter(inputs=len(numbers))
    said: list[str] = []
    slowest = most = 0.0
    watched = Watch()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        write_beside(Path(folder, "file.index"))
        import_what_reading_takes(Path(folder))
        for number in numbers:
            suffix, content = make(random.Random(f"{seed} {number}"))
            path = Path(folder, f"file{suffix}")
            path.write_bytes(content)
            reset_peak()
            before, begun = peak_memory(), time.process_time()
            faults: Counter[str] = Counter()
            try:
                with watched:
                    tally[outcome(path, run=is_run)] += 1
            except Exception as error:
                faults["foreign errors"] += 1
                said.append(f"{label} #{number} of seed {seed}: {error!r}")
            seconds, grown = time.process_time() - begun, peak_memory() - before - 3e-6 * len(content)
            slowest, most = max(slowest, seconds), max(most, grown)
            faults[FAULTS[2]] += seconds > SECONDS
            faults[FAULTS[3]] += grown > MEGABYTES
            faults["code run"] += bool(watched.seen) or Path("canary").exists()
            if any(faults.values()):
                said.append(f"{label} #{number} of seed {seed}: {dict(faults)} {watched.seen}")
            tally.update(faults)
    return {
        "tally": {key: count for key, count in tally.items() if count},
        "slowest": slowest,
        "most": most,
        "said": said,
    }


def import_what_reading_takes(folder: Path) -> None:
    """Read a good file of each format, so that what is first imported then is not taken for a damaged file's doing."""
    for codec in ("raw-unicode-escape", "cp437", "latin1", "ascii"):
        codecs.lookup(codec)
    write_beside(folder / "good.index")
    for label, (suffix, content) in originals().items():
        path = folder / f"good{suffix}"
        path.write_bytes(content)
        outcome(path, run=label == "run")


class Watch:
    """A block of code in which programs that start and names that are imported are noted."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: Any) -> None:
        if self.on and event in _RUNS:
            self.seen.append(f"{event} {given!r:.80}")

    def __enter__(self) -> None:
        self.on, self.seen = True, []

    def __exit__(self, *_: object) -> None:
        self.on = False


if __name__ == "__main__":
    sys.exit(main())
