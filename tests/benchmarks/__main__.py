"""All comparisons on this machine by one command, with a page of tables at the end.

    python -m tests.benchmarks --data_dir DIR --weights FILE

``DIR`` holds ``VOCdevkit`` and ``FILE`` AlexNet's convolutions. What a member found is kept in ``--out``, so that a suite
that was stopped goes on where it was; members with long parts keep those too. Ends with status 1 if a member failed or
something that it holds to be true was not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.benchmarks.members import MEMBERS
from tests.benchmarks.page import write_page
from tests.benchmarks.rounds import say
from tests.benchmarks.suite import run_member


def main(argv: list[str] | None = None) -> int:
    """Run the suite; return the exit status."""
    options = parse_arguments(argv)
    chosen = [member for member in MEMBERS if not options.only or member.name in options.only]
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    places = {
        "DIR": str(options.data_dir.resolve()),
        "FILE": str(options.weights.resolve()),
        "OUT": str(folder),
    }
    say(f"{len(chosen)} comparisons; outcomes go to {options.out}")
    outcomes = []
    for member in chosen:
        outcomes.append(run_member(member, places, folder, quick=options.quick, again=options.again))
        write_page(options.page or folder / "benchmarks.md", command(options), outcomes, folder)
    failed = [outcome.name for outcome in outcomes if outcome.status]
    say(
        f"the page is {options.page or options.out / 'benchmarks.md'}; "
        + (f"failed: {failed}" if failed else "all well")
    )
    return 1 if failed else 0


def command(options: argparse.Namespace) -> str:
    """Return the command as others can run it."""
    only = f" --only {' '.join(options.only)}" if options.only else ""
    return (
        f"python -m tests.benchmarks --data_dir DIR --weights FILE{only}{' --quick' if options.quick else ''}"
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [member.name for member in MEMBERS]
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that holds VOCdevkit")
    parser.add_argument("--weights", type=Path, required=True, help="AlexNet's convolutions, any checkpoint")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="(default results/benchmarks)"
    )
    parser.add_argument("--page", type=Path, help="where the page is written (default benchmarks.md in --out)")
    parser.add_argument("--again", action="store_true", help="measure anew what --out holds")
    parser.add_argument(
        "--quick", action="store_true", help="next to no work: tries the suite, measures nothing"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
