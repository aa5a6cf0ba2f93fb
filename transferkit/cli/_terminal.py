"""What is printed: fitted to the terminal, colored only there, and harmless whatever names a file has."""

from __future__ import annotations

import json
import os
import shutil
import sys


def width() -> int | None:
    """Return the terminal's width, or ``None`` where the output is no terminal and need not fit one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def color() -> bool:
    """Return whether to color: on a terminal that can, unless ``NO_COLOR`` asks for none."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def harmless(text: str) -> str:
    r"""Return text with its control characters shown as ``?``: a name in a file is anybody's.

    Example:
        >>> harmless("\x1b[31mconv.weight")
        '?[31mconv.weight'
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def as_json(value: object) -> str:
    """Return plain values as JSON, for a program."""
    return json.dumps(value, indent=2, default=str)
