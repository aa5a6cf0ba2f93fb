"""All comparisons on this machine by one command, with a page of tables at the end.

    python -m tests.benchmarks --data_dir DIR --weights FILE

``DIR`` holds ``VOCdevkit`` and ``FILE`` AlexNet's convolutions. What a member found is kept in ``--out``, so that a suite
that was stopped goes on where it was; members with long parts keep those too. Ends with status 1 if a member failed or
something that it holds to be true was not.

    python -m tests.benchmarks --gpu

measures the full recipe on a GPU instead, on made-up photos unless there is a ``--data_dir``. Ends with status 3 where
there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from tests.benchmarks.members import MEMBERS, ON_GPU, Member
from tests.benchmarks.page import Outcome, write_page
from tests.benchmarks.rounds import say
from tests.benchmarks.suite import run_member

NO_GPU = 3


def main(argv: list[str] | None = None) -> int:
    """Run the suite; return the exit status."""
    options = parse_arguments(argv)
    if options.gpu and not options.quick and not torch.cuda.is_available():
        say("There is no GPU here that torch can use: nothing was measured.")
        return NO_GPU
    folder, page = options.out.resolve(), options.page or options.out / "benchmarks.md"
    folder.mkdir(parents=True, exist_ok=True)
    for parts in folder.glob("parts_*") if options.again else ():
        shutil.rmtree(parts)
    chosen = [member for member in members(options) if not options.only or member.name in options.only]
    minutes = sum(member.minutes for member in chosen)
    say(
        f"{len(chosen)} comparisons, about {minutes:.0f} minutes on two quiet cores; outcomes go to {options.out}"
    )
    failed = []
    for member in chosen:
        outcome = run_member(member, places(options, folder), folder, quick=options.quick, again=options.again)
        failed += [member.name] if outcome.status else []
        outcomes = all_outcomes(folder)
        write_page(page, outcomes, folder)
        (folder / "benchmarks.json").write_text(
            json.dumps([asdict(o) for o in outcomes], indent=1), encoding="utf-8"
        )
    say(f"the page is {page}; " + (f"failed: {', '.join(failed)}" if failed else "all well"))
    return 1 if failed else 0


def members(options: argparse.Namespace) -> tuple[Member, ...]:
    """Return the suite that is asked for."""
    return ON_GPU if options.gpu else MEMBERS


def places(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Return what the members' ``DIR``, ``FILE`` and ``OUT`` stand for."""
    given = {"DIR": options.data_dir, "FILE": options.weights, "OUT": folder}
    return {word: str(path.resolve()) for word, path in given.items() if path is not None}


def all_outcomes(folder: Path) -> list[Outcome]:
    """Return what members found, now or in earlier calls."""
    kept = (folder / f"{member.name}.json" for member in (*MEMBERS, *ON_GPU))
    return [Outcome.read(path) for path in kept if path.is_file()]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [member.name for member in (*MEMBERS, *ON_GPU)]
    parser.add_argument("--data_dir", type=Path, help="folder that holds VOCdevkit")
    parser.add_argument("--weights", type=Path, help="AlexNet's convolutions, any checkpoint")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"some of {', '.join(names)}")
    parser.add_argument(
        "--out", type=Path, default=Path("results/benchmarks"), help="(default results/benchmarks)"
    )
    parser.add_argument("--page", type=Path, help="where the page is written (default benchmarks.md in --out)")
    parser.add_argument("--again", action="store_true", help="measure anew what --out holds")
    parser.add_argument("--gpu", action="store_true", help="the suite for a GPU")
    parser.add_argument(
        "--quick", action="store_true", help="next to no work: tries the suite, measures nothing"
    )
    options = parser.parse_args(argv)
    if not options.gpu and not (options.data_dir and options.weights):
        parser.error("--data_dir and --weights are needed, except with --gpu")
    return options


if __name__ == "__main__":
    sys.exit(main())
