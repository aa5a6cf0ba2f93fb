"""The advice of a hundred refusals, followed to the letter: does each end right, or in another refusal?

    python -m tests.benchmarks.advice --count 100

A refusal prints what to do next; that is parsed, done and tried again, every way that is named, until it ends
(:mod:`tests.transfer.advice`). Right is what was known when the call was made up (:mod:`tests.transfer.refusals`). Ends
with status 1 if a way ended wrong, in a circle, or in an error that is not the library's.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.table import Table, write_tables
from tests.transfer.advice import Followed, follow
from tests.transfer.refusals import scenarios

OUTCOMES = ("right", "refused", "wrong", "circle", "crash")


def table_of(found: Sequence[Followed]) -> Table:
    """Return how many refusals there were of each kind, and how the ways that they advised ended."""
    table = Table(
        f"{len(found)} refusals", {"refused for": "", "calls": ",.0f", **dict.fromkeys(OUTCOMES, ",.0f")}
    )
    kinds: dict[str, list[Followed]] = {}
    for followed in found:
        kinds.setdefault(followed.scenario.name, []).append(followed)
    for kind, several in [*kinds.items(), ("all", list(found))]:
        outcomes = Counter(ending.outcome for followed in several for ending in followed.endings)
        table.add(kind, float(len(several)), *(float(outcomes[outcome]) for outcome in OUTCOMES))
    return table


def described(followed: Followed) -> str:
    """Return a refusal and the ways that were gone from it."""
    lines = [f"{followed.scenario.name}:", *(f"  | {line}" for line in followed.message.splitlines())]
    for ending in followed.endings:
        words = "" if ending.outcome == "right" else ending.words.partition("\n")[0]
        lines.append(f"  {ending.outcome}: {' -> '.join(map(str, ending.way))}: {words}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="refusals to follow")
    parser.add_argument("--verbose", action="store_true", help="show every message and every way")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = [followed for scenario in scenarios(2 * options.count) if (followed := follow(scenario)).message]
    found = found[: options.count]
    failed = [followed for followed in found if followed.failures]
    for followed in found if options.verbose else failed:
        print(described(followed))
    table = table_of(found)
    print(table.markdown())
    print(f"{len(found) - len(failed)} of {len(found)} end right or in another refusal.")
    if options.json:
        write_tables(options.json, [table])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
