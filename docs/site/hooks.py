"""What the site's builder does beside mkdocs: make the reference, prune, and check what it has built.

Every part of the package gets a page of reference, so that a new one is there without anybody thinking of it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from transferkit.cli import build_parser
from transferkit.cli._commands import commands_of

sys.path.insert(0, str(Path(__file__).parent))
from roles import parts, public_names, roles_as_code

# What stands on the page of another part.
MORE = {
    "transfer": ("transferkit.transfer.handlers",),
    "scorer": ("transferkit.scorer.pictures",),
}

_LOADED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?(https?:)?//|<link[^>]+href=["']?(https?:)?//"""
)


def on_config(config: Any) -> Any:
    """Complete the navigation with a page for every part."""
    reference = [
        "reference/index.md",
        *(f"reference/{part}.md" for part in parts()),
        "reference/command-line.md",
    ]
    config.nav = [{"Reference": reference} if entry == "Reference" else entry for entry in config.nav]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the parts' pages."""
    for part, module in parts().items():
        text = f"# {module.__name__}\n\n::: {module.__name__}\n"
        for more in MORE.get(part, ()):
            title = more.rpartition(".")[2].capitalize()
            text += f"\n## {title}\n\n::: {more}\n    options:\n      heading_level: 3\n"
        files.append(File.generated(config, f"reference/{part}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the list of parts and the commands' own help where a page asks for them."""
    for mark, make in (("<!-- parts -->", _table_of_parts), ("<!-- help -->", _help)):
        markdown = markdown.replace(mark, make()) if mark in markdown else markdown
    return markdown


def on_post_build(config: Any) -> None:
    """Refuse a site that loads anything from elsewhere, or whose reference lacks a public name.

    Raises:
        PluginError: Naming all of it.
    """
    site = Path(config.site_dir)
    pages = {path.relative_to(site): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    problems = [f"{path} loads from elsewhere" for path, text in pages.items() if _LOADED.search(text)]
    reference = "".join(text for path, text in pages.items() if path.parent.name == "reference")
    problems += [
        f"the reference lacks {name}" for name in public_names().values() if f'id="{name}"' not in reference
    ]
    if problems:
        raise PluginError("\n".join(problems))


def _table_of_parts() -> str:
    rows = []
    for part, module in parts().items():
        first = roles_as_code((module.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " "))
        rows.append(f"| [{part}]({part}.md) | {first} |")
    return "\n".join(["| part | |", "|---|---|", *rows])


def _help() -> str:
    os.environ["COLUMNS"] = "100"  # argparse fits its help to the terminal, which a page is not
    parser = build_parser()
    texts = {"transferkit": parser, **{f"transferkit {name}": of for name, of in commands_of(parser).items()}}
    return "\n\n".join(
        f"## {name}\n\n```text\n{found.format_help()}```"
        for name, found in texts.items()
        if "completion" not in name
    )
