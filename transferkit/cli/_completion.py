"""Shell completion without any package: a static script, so that a press of TAB imports nothing."""

from __future__ import annotations

import argparse

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
