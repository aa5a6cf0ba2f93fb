"""The command line: look into checkpoints, plan a transfer, fit a classifier of photos and predict with it.

Exit status: 0, success (``diff``: nothing differs); 1, ``diff`` found a difference, ``plan`` a reason to refuse, or
``check`` a problem; 2, the command failed.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import transferkit
from transferkit.cli._commands import CHECK, CONVERT, DIFF, INSPECT, PLAN, complain, script
from transferkit.cli._photos import FIT, JOIN, PREDICT
from transferkit.errors import TransferKitError

OK, FAILED, INTERRUPTED = 0, 2, 130

_EPILOG = """\
examples:
  transferkit inspect alexnet.pth                  what is in a file
  transferkit diff before.pt after.pt --values     what differs between two
  transferkit plan alexnet.pth mynet:build         what a transfer onto a model would do
  transferkit convert run.pt model.safetensors     any of them as safetensors
  transferkit check photos/                        what a folder of photos holds, and what is wrong
  transferkit fit photos/ --out pets.tk            a classifier of one's own photos
  transferkit predict pets.tk new/ --csv out.csv   what is in new ones
  transferkit COMMAND --help                       more of them

exit status: 0 all is well, 1 files differ, a transfer would be refused or photos are wrong, 2 it could not be done

shell completion: eval "$(transferkit completion)" in ~/.bashrc, or in ~/.zshrc after bashcompinit"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):  # a name may hold letters that the terminal has no code for
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help(sys.stderr)
        return FAILED
    try:
        return int(options.run(options))
    except (TransferKitError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        complain(error)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subparser for each command."""
    parser = argparse.ArgumentParser(
        "transferkit",
        description="Look into checkpoints, plan transfers, and classify photos. No code in a file runs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"transferkit {transferkit.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for command in (INSPECT, DIFF, PLAN, CONVERT, CHECK, FIT, PREDICT, JOIN):
        added = commands.add_parser(
            command.name,
            help=command.purpose,
            description=f"{command.purpose[0].upper()}{command.purpose[1:]}.",
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    shell = commands.add_parser("completion", help="print what bash and zsh need to complete these commands")
    shell.set_defaults(run=lambda _: print(script(parser)) or OK)
    return parser
