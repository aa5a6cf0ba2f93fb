"""The blocks of a page of documentation: found, run in order, and compared with what the page says they print.

    python tests/docs/pages.py [PAGE...]     writes what blocks print now into the pages, to be looked at and committed
    python tests/docs/pages.py --neighbours [PAGE...]   with those that need other libraries

The blocks of a page share a namespace and a folder, in the order of the page. How a fence is titled says what its
block is; readers see the titles, so they are words:

- ```python                               runs
- ```python title="file: rules.py"        is written to that file, for the blocks after it to import
- ```python title="needs rasterio"        runs in tests/neighbours, where other libraries are; elsewhere it is compiled
- ```python title="not run: needs timm"   is only compiled; the title says why
- ```text title="prints"                  what the block before it prints, if it ran; `...` stands for anything
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^( *)```(\w+)(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: its language, its title, its text, and the page's line before the text."""

    language: str
    title: str
    text: str
    line: int

    @property
    def not_run(self) -> bool:
        return self.title.startswith("not run: ")

    @property
    def needs_neighbours(self) -> bool:
        return self.title.startswith("needs ")

    def is_printed_by(self, printed: str) -> bool:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        return doctest.OutputChecker().check_output(self.text, printed, flags)


class Disagreement(NamedTuple):
    """A block that does not hold what was printed."""

    block: Block
    printed: str


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        _, language, info, body = match.groups()
        title = re.search(r'title="([^"]*)"', info)
        line = text[: match.start(4)].count("\n")
        found.append(Block(language, title[1] if title else "", textwrap.dedent(body), line))
    return found


def run(page: Path, names: dict[str, Any] | None = None, *, neighbours: bool = False) -> Iterator[Disagreement]:
    """Run a page's blocks in the working folder; yield those that say something else than is printed.

    Args:
        page: The page.
        names: Where its blocks define what they do.
        neighbours: Run the blocks that need other libraries too.
    """
    names = {} if names is None else names
    names["__name__"] = "__main__"
    printed: str | None = ""
    for block in blocks(page):
        if block.language == "python" and block.title.startswith("file: "):
            Path(block.title.removeprefix("file: ")).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code = compile("\n" * block.line + block.text, str(page), "exec")
            printed = None
            if not block.not_run and (neighbours or not block.needs_neighbours):
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec(code, names)
                printed = out.getvalue()
        elif block.title == "prints" and printed is not None and not block.is_printed_by(printed):
            yield Disagreement(block, printed)


def definitions(page: Path) -> dict[str, Any]:
    """Return what a page defines in blocks that print nothing, those that need other libraries included."""
    names: dict[str, Any] = {"__name__": "__main__"}
    found = blocks(page)
    for block, following in zip(found, [*found[1:], found[-1]], strict=True):
        if block.language == "python" and not block.not_run and following.title != "prints":
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    return names


def refresh(page: Path, neighbours: bool) -> int:
    """Write what the blocks print now into the page; return how many changed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.path.insert(0, folder)
        found = list(run(page, neighbours=neighbours))
        sys.path.remove(folder)
    lines = page.read_text(encoding="utf-8").split("\n")
    for block, printed in reversed(found):
        lines[block.line : block.line + block.text.count("\n")] = printed.rstrip("\n").split("\n")
    page.write_text("\n".join(lines), encoding="utf-8")
    return len(found)


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"
    named = [Path(name).resolve() for name in sys.argv[1:] if name != "--neighbours"]
    for chosen in named or pages():
        print(f"{chosen.relative_to(ROOT)}: {refresh(chosen, '--neighbours' in sys.argv)} blocks changed")
