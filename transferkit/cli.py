"""The command line: look into a checkpoint, compare two of them, plan a transfer.

Exit status: 0, all is well (``diff``: nothing differs); 1, ``diff`` found a difference, or ``plan`` a reason to
refuse; 2, it could not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.checkpoints.compare import compare
from transferkit.checkpoints.describe import compare_in_words, describe, describe_in_words
from transferkit.errors import TransferError, TransferKitError
from transferkit.transfer.plan_command import PLAN_HELP, add_plan_arguments, plan_of
from transferkit.transfer.table import render_text

OK, DIFFERENT, FAILED, INTERRUPTED = 0, 1, 2, 130

_INSPECT_HELP = """\
examples:
  transferkit inspect alexnet.pth                    the layers of a file, none of it loaded
  transferkit inspect model.prm --match 'conv*'      some of them
  transferkit inspect run.pt --key model_ema         the other state dict in a file that holds two
  transferkit inspect llama/ --json | jq .totals     a folder of shards, for a program

exit status: 0 done, 2 the file cannot be read"""

_DIFF_HELP = """\
examples:
  transferkit diff before.pt after.pt                names, shapes and dtypes
  transferkit diff before.pt after.pt --values       also where values differ, and by how much
  transferkit diff run.pt run.pt --key model --key model_ema --values

exit status: 0 nothing differs, 1 something differs, 2 a file cannot be read"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except TransferKitError as error:
        print(f"transferkit: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    purpose = "Look into checkpoints of any format and compare them. No code in a file ever runs."
    parser = argparse.ArgumentParser("transferkit", description=purpose)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    inspect = _command(commands, "inspect", "show the layers of a checkpoint", _INSPECT_HELP, _inspect)
    inspect.add_argument("path", metavar="FILE", help="a file of weights, or a folder of shards")
    inspect.add_argument("--match", metavar="GLOB", default="*", help="list only layers with such names")
    inspect.add_argument("--key", metavar="KEY", help="the state dict to take, where a file holds several")
    digest = "compute the SHA-256 of a file above 256 MiB too"
    inspect.add_argument("--digest", action="store_true", default=None, help=digest)
    inspect.add_argument("--json", action="store_true", help="print JSON")

    diff = _command(commands, "diff", "show what differs between two checkpoints", _DIFF_HELP, _diff)
    diff.add_argument("first", metavar="A", help="a file of weights, or a folder of shards")
    diff.add_argument("second", metavar="B", help="another")
    diff.add_argument("--values", action="store_true", help="compare values too, which reads both files")
    key = "the state dict to take; twice for A and B"
    diff.add_argument("--key", metavar="KEY", action="append", default=[], help=key)
    diff.add_argument("--json", action="store_true", help="print JSON")

    add_plan_arguments(
        _command(commands, "plan", "show what a transfer onto a model would do", PLAN_HELP, _plan)
    )
    return parser


def _command(commands: Any, name: str, purpose: str, examples: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    checkpoint = read_checkpoint(options.path, key=options.key)
    description = describe(checkpoint, match=options.match, digest=options.digest)
    _print(_json(description) if options.json else describe_in_words(description, _width()))
    return OK


def _diff(options: argparse.Namespace) -> int:
    keys = (options.key * 2)[:2] if options.key else (None, None)
    first, second = (_read(path, key) for path, key in zip((options.first, options.second), keys, strict=True))
    found = compare(first, second, values=options.values, progress=True)
    words = compare_in_words(found, options.first, options.second, _width())
    _print(_json(found.to_dict()) if options.json else words)
    return DIFFERENT if found else OK


def _plan(options: argparse.Namespace) -> int:
    plan = plan_of(options)
    _print(_json(plan.to_dict()) if options.json else render_text(plan, width=_width()))
    try:
        plan.check()
    except TransferError as error:
        print(f"transferkit: {error}", file=sys.stderr)
        return DIFFERENT
    return OK


def _read(path: str, key: str | None) -> Checkpoint:
    return read_checkpoint(path, key=key)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str)


def _print(text: str) -> None:
    """Print text, its control characters made harmless: a name in a file is anybody's."""
    print("".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text), flush=True)


def _width() -> int | None:
    """Return the terminal's width, or ``None`` where the output is no terminal and need not fit one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


if __name__ == "__main__":
    sys.exit(main())
