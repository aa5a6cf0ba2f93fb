"""Each promise of SECURITY.md names the tests that hold it."""

from __future__ import annotations

import re
from pathlib import Path


def test_every_promise_names_tests_that_are_there(root: Path) -> None:
    text = (root / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*.*\| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == text.count("\n| **") >= 13
    for row in rows:
        names = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert names, row
        assert [name for name in names if not (root / name).is_file()] == []
