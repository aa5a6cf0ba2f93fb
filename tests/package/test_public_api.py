"""What users write stays as it is unless somebody decides otherwise."""

from __future__ import annotations

import difflib
import sys

import pytest

from tests.package.public_api import SNAPSHOT, describe


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="signatures are written a little differently elsewhere"
)
def test_names_and_signatures_are_those_of_the_snapshot() -> None:
    known, now = SNAPSHOT.read_text(encoding="utf-8").splitlines(), describe().splitlines()
    changes = list(difflib.unified_diff(known, now, "snapshot", "now", lineterm="", n=0))
    assert not changes, "\n".join(
        [*changes, "if that is meant: CHANGELOG.md, then python tests/package/public_api.py"]
    )
