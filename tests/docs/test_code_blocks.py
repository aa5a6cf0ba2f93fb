"""Every block of Python in the documentation and the README runs, and prints what the page says it prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, pages, run

PAGES = [str(page.relative_to(ROOT)) for page in pages()]


SLOW = {"docs/tutorial.md"}  # it trains networks


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES]
)
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(str(tmp_path))
    wrong = [
        f"{page}, line {block.line + 1}, says\n{block.text}\nand the block before it prints\n{printed}"
        for block, printed in run(ROOT / page)
    ]
    assert not wrong, "\n".join([*wrong, f"after a look: python tests/docs/pages.py {page}"])


@pytest.mark.parametrize("page", PAGES)
def test_titles_of_blocks_are_of_the_known_kinds(page: str) -> None:
    for block in blocks(ROOT / page):
        if block.language == "python":
            known = not block.title or block.title.startswith(("needs ", "not run: ", "file: "))
            assert known, f"{page}, line {block.line}: {block.title!r}"


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    reasons = [(page, block.title) for page in PAGES for block in blocks(ROOT / page) if block.not_run]
    assert len(reasons) <= 8, reasons
    assert all(len(title.removeprefix("not run: ").split()) >= 2 for _, title in reasons), reasons
