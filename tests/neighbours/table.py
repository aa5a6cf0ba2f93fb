"""The table of transfers between implementations, in docs/benchmarks.md: python -m tests.neighbours.table [FAMILY ...]."""

from __future__ import annotations

import re
import sys
import warnings

from transferkit.transfer import ByStructure


def main(families: list[str]) -> None:
    """Print a row a transfer, as each is done."""
    from tests.neighbours.pairs import PAIRS, transfer

    print(
        "| transfer | mapping | the user's lines | copied, adapted | largest difference |\n|---|---|---|---|---|"
    )
    for pair in PAIRS:
        if families and pair.family not in families:
            continue
        for name, source, target, arguments in pair.ways():
            difference, report = transfer(source, target, pair.size, arguments)
            counts = f"{len(report.copied)}, {len(report.adapted)}"
            apart = f" ({pair.apart})" if pair.apart else ""
            print(f"| {name} | {lines(arguments)} | {counts} | {difference:.1e}{apart} |", flush=True)


def lines(arguments: dict[str, object]) -> str:
    """Return what a user writes: the kind of mapping, and how many renamings and arguments."""
    mapping = arguments.get("mapping", "name")
    count = len(mapping.known) if isinstance(mapping, ByStructure) else 0
    kind = "structure" if isinstance(mapping, ByStructure) else str(mapping)
    others = [f"{name}={value!r}" for name, value in arguments.items() if name != "mapping"]
    renamings = f"{count} renaming{'s' * (count > 1)}" if count else ""
    return f"{kind} | {', '.join(filter(None, (renamings, *others))) or 'none'}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main([re.sub("_", " ", family) for family in sys.argv[1:]])
