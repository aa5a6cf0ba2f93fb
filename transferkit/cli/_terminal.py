"""The parts that commands share: their form, output that suits the terminal, and shell completion."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

from transferkit.errors import harmless


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        name: The word that is typed.
        purpose: A few words for the help, beginning in lower case.
        examples: The end of the command's help.
        add_arguments: Adds the command's arguments to a parser.
        run: Runs the command and returns the exit status.
    """

    name: str
    purpose: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def width() -> int | None:
    """Return the terminal's width, or ``None`` where the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def color() -> bool:
    """Return whether to color: on a terminal that can, unless ``NO_COLOR`` is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(words: str) -> None:
    """Print text with line breaks of its own, in which no name can pass for anything else."""
    print(harmless(words, lines=True), flush=True)


def complain(error: object, advice: str = "") -> None:
    """Print an error, every line but the first set in, so that no name in it begins a line."""
    words = harmless(str(error), lines=True).replace("\n", "\n  ")
    print(f"transferkit: {words}{advice}", file=sys.stderr)


# Shell completion without any package: a static script, so that pressing TAB imports nothing.
_SCRIPT = """\
_transferkit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  if [ "${{COMP_WORDS[COMP_CWORD-1]}}" = --mapping ]; then
    COMPREPLY=($(compgen -W "name order structure" -- "$word"))
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _transferkit transferkit"""


def script(parser: argparse.ArgumentParser) -> str:
    """Return a function for bash that completes a parser's commands, their options, and files.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> inspect = parser.add_subparsers().add_parser("inspect")
        >>> "inspect) words='-h --help'" in script(parser)
        True
    """
    options = {name: _options(command) for name, command in commands_of(parser).items()}
    cases = "\n".join(f"    {name}) words='{' '.join(known)}' ;;" for name, known in options.items())
    return _SCRIPT.format(cases=cases, commands=" ".join(options))


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return a parser's commands by name."""
    choices = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: command for found in choices for name, command in found.items()}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]
