"""A thousand random networks moved every way: is a layer ever given another's values without a word?

    python -m tests.benchmarks.who_is_who --cases 1000

Layers of equal shape are shuffled or renamed, tied, grouped, wrapped and frozen at random; the source is a file that
keeps the order of definition, one that loses it, a live model or a state dict (:mod:`tests.transfer.identity`). Ends
with status 1 if a case came out wrong, was refused though all was said, or accepted though nothing tells.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.benchmarks.table import Table, write_tables
from tests.transfer.identity import Outcome, run_case
from tests.transfer.identity_cases import Case, make_case, must_be

OUTCOMES = ("right", "refused", "user's word", "wrong")


def table_of(found: Sequence[tuple[Case, Outcome]]) -> Table:
    """Return how often each outcome came of each way of moving."""
    columns = {"mapping": "", "names": "", "order": "", "source": "", **dict.fromkeys(OUTCOMES, ",.0f")}
    table = Table(f"{len(found)} random networks", columns)
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for case, outcome in found:
        source = "order lost" if case.form == ".safetensors" else "order kept"
        row = counts.setdefault((case.by, case.names, case.order, source), Counter())
        row[outcome.what] += 1
    for ways in sorted(counts):
        table.add(*ways, *(float(counts[ways][outcome]) for outcome in OUTCOMES))
    total = Counter(outcome.what for _, outcome in found)
    table.add("all", "", "", "", *(float(total[outcome]) for outcome in OUTCOMES))
    table.notes.append(
        "user's word: by order under other names, or by names that are those of other layers, which nothing contradicts."
    )
    return table


def failures(found: Sequence[tuple[Case, Outcome]]) -> list[str]:
    """Return the cases that may not come out as they did."""
    return [
        f"{case}: {outcome.what}, not {must_be(case) or 'right or refused'}: {' / '.join(outcome.why.split(chr(10)))[:300]}"
        for case, outcome in found
        if outcome.what == "wrong" or must_be(case) not in ("", outcome.what)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder:
        cases = [make_case(seed) for seed in range(options.first, options.first + options.cases)]
        found = [(case, run_case(case, Path(folder))) for case in cases]
    table = table_of(found)
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])
    failed = failures(found)
    print("\n".join([f"{len(failed)} may not be:", *failed]) if failed else "Nothing is wrong.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
