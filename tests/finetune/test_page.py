"""The page: everything inside it, nothing of what it is given taken for markup, and shown whole by a browser."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from transferkit.errors import ArgumentError
from transferkit.finetune._report_sections import Page

from .chromium import look

NASTY = '<script src="http://example.org/x.js">alert(1)</script> & "quotes" é'


class Outline(HTMLParser):
    """Collects what matters of a page and checks that tags close."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def a_figure(width: float = 8.0):
    Figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
    figure = Figure(figsize=(width, 2))
    figure.subplots().plot([1, 2, 3])
    return figure


def full_page() -> Page:
    page = Page(NASTY, subtitle=NASTY)
    for _ in range(2):
        page.section(NASTY)
    page.heading(NASTY)
    page.text(NASTY * 20)
    page.items([NASTY])
    page.numbers({NASTY: NASTY, "mean AP": "50.0 %"})
    page.table([[NASTY, "b"], ["1", NASTY], ["mean", "2"]], caption=NASTY, total=True)
    page.table([[f"column {n}" for n in range(40)], ["1234567"] * 40])
    page.settings({NASTY: "x" * 300, "a path": "/very" * 80})
    page.preformatted(NASTY + "\n" + "wide " * 100, label=NASTY)
    page.figure(a_figure(), alt=NASTY, caption=NASTY)
    page.figure(a_figure(20.0), alt="a wide photo", photo=True)
    return page


def test_holds_all_it_shows_and_runs_nothing():
    outline = Outline(full_page().to_html())
    assert not outline.all("script")
    for _, attributes in outline.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert "url(" not in outline.words
    assert "@import" not in outline.words
    assert outline.words.count(NASTY) > 10  # as text


def test_can_be_heard_and_found_ones_way_in():
    outline = Outline(full_page().to_html())
    assert outline.all("html") == [{"lang": "en"}]
    assert [image["alt"] for image in outline.all("img")] == [NASTY, "a wide photo"]
    assert len(outline.all("h1")) == 1
    anchors = [heading["id"] for heading in outline.all("h2")]
    assert len(set(anchors)) == len(anchors) == 2
    assert [link["href"] for link in outline.all("a")] == [f"#{anchor}" for anchor in anchors]
    assert {header["scope"] for header in outline.all("th")} == {"col", "row"}
    with pytest.raises(ArgumentError, match="alt must be what the picture shows"):
        Page("a").figure(a_figure(), alt=" ")


@pytest.mark.parametrize("width", [320, 768, 1400])
def test_a_browser_shows_all_of_it_in_any_window(tmp_path, width):
    seen = look(full_page().write(tmp_path / "new" / "page.html"), width)
    assert seen.page_width == seen.width, "the page scrolls sideways"
    assert seen.outside == ()
    assert (seen.images, seen.broken, seen.without_text) == (2, 0, 0)
    assert seen.requests == ()


def test_the_browser_check_sees_what_is_wrong(tmp_path):
    path = tmp_path / "page.html"
    image = '<img src="http://127.0.0.1:9/a.png"><div style="width: 3000px">wide</div></main>'
    path.write_text(full_page().to_html().replace("</main>", image))
    seen = look(path, 768)
    assert seen.page_width > seen.width
    assert "DIV" in seen.outside
    assert (seen.images, seen.broken, seen.without_text) == (3, 1, 1)
    assert seen.requests == ("http://127.0.0.1:9/a.png",)
