"""A self-contained HTML page: images are embedded; there are no scripts, fonts or links to other files."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from transferkit.errors import require
from transferkit.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Page:
    """A page of headings, text, tables and figures, written as one HTML file; all text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str]] = []  # id, heading
        self._parts: list[str] = []

    def section(self, heading: str) -> None:
        """Begin a section, which is also listed in the table of contents."""
        anchor = re.sub(r"\W+", "-", heading.lower()).strip("-")
        anchor += f"-{len(self._sections)}" if anchor in dict(self._sections) else ""
        self._sections.append((anchor, heading))
        self._parts.append(f'<h2 id="{anchor}">{html.escape(heading)}</h2>')

    def heading(self, heading: str) -> None:
        """Begin a subsection."""
        self._parts.append(f"<h3>{html.escape(heading)}</h3>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def items(self, lines: Sequence[str]) -> None:
        """Add a list."""
        self._parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")

    def numbers(self, numbers: Mapping[str, str]) -> None:
        """Add a row of large numbers with their names."""
        cells = (f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in numbers.items())
        self._parts.append(f'<dl class="numbers">{"".join(cells)}</dl>')

    def table(self, rows: Sequence[Sequence[str]], *, caption: str = "", total: bool = False) -> None:
        """Add a table whose first row is its header; with ``total`` the last row sums up the others."""
        header, *body = rows
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
        lines = [
            f"<tr{_class('total', total and row is body[-1])}>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in body
        ]
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        table = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        self._parts.append(_scrolling(table, caption or "table"))

    def settings(self, values: Mapping[str, object]) -> None:
        """Add names and their values as a table."""
        lines = (
            f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>'
            for name, value in values.items()
        )
        self._parts.append(f'<table class="settings"><tbody>{"".join(lines)}</tbody></table>')

    def preformatted(self, text: str, *, label: str) -> None:
        """Add preformatted text in a monospaced font; ``label`` names it for screen readers."""
        self._parts.append(_scrolling(f"<pre>{html.escape(text)}</pre>", label))

    def figure(self, figure: Figure, *, alt: str, caption: str = "", photo: bool = False) -> None:
        """Add a figure with its alternative text, as PNG or, for a ``photo``, as JPEG."""
        require(bool(alt.strip()), "alt", "what the picture shows", alt)
        file = io.BytesIO()
        if photo:
            figure.savefig(file, format="jpeg", dpi=130, facecolor="white", pil_kwargs={"quality": 85})
        else:
            figure.savefig(file, format="png", dpi=160, facecolor="white")
        data = base64.b64encode(file.getvalue()).decode("ascii")
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        # In a narrow window the figure shrinks to 0.6 of its own size; below that it scrolls.
        image = (
            f'<img src="data:image/{"jpeg" if photo else "png"};base64,{data}" width="{width}" height="{height}" '
            f'alt="{html.escape(alt)}" style="min-width: {round(0.6 * width)}px">'
        )
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{_scrolling(image, caption or alt)}{below}</figure>")

    def to_html(self) -> str:
        """Return the page as HTML."""
        style = resources.files("transferkit.finetune").joinpath("page.css").read_text(encoding="utf-8")
        links = "".join(f'<li><a href="#{a}">{html.escape(h)}</a></li>' for a, h in self._sections)
        title = html.escape(self.title)
        subtitle = f'<p class="subtitle">{html.escape(self.subtitle)}</p>' if self.subtitle else ""
        return "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f'<title>{title}</title>\n<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>',
                f"<header><h1>{title}</h1>{subtitle}</header>",
                f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>',
                *self._parts,
                "</main>\n</body>\n</html>\n",
            ]
        )

    def write(self, path: Path | str) -> Path:
        """Write the page to ``path``, atomically, and create its folder; return the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(self.to_html().encode()))
        return path


def _scrolling(content: str, label: str) -> str:
    """Return ``content`` in a box that scrolls sideways in a narrow window, also by keyboard."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{html.escape(label)}">{content}</div>'


def _class(name: str, given: bool) -> str:
    return f' class="{name}"' if given else ""
