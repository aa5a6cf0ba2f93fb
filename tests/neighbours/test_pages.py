"""Every block of the pages that names another library runs, and prints what the page says."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, run

PAGES = ["docs/how-to/other-libraries.md", "docs/how-to/any-network.md"]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs_word_for_word(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = [f"{block.text}\nis printed as\n{printed}" for block, printed in run(ROOT / page, neighbours=True)]
    assert not wrong, "\n".join(wrong)
    assert not any(block.not_run for block in blocks(ROOT / page))


def test_the_versions_that_the_page_names_are_those_that_run_here() -> None:
    text = (ROOT / PAGES[0]).read_text(encoding="utf-8")
    for library in ("torch", "torchvision", "timm", "transformers", "peft", "lightning"):
        assert f"{library} {version(library).partition('+')[0]}" in " ".join(text.split()), library
