"""Implementations of one architecture serve each other: random weights moved for real, and the outputs compared."""

from __future__ import annotations

import pytest

for name in ("timm", "torchvision", "transformers"):
    pytest.importorskip(name)

from tests.neighbours.pairs import PAIRS, transfer  # noqa: E402
from transferkit.transfer import ByStructure  # noqa: E402

WAYS = [(name, one, two, pair, arguments) for pair in PAIRS for name, one, two, arguments in pair.ways()]


@pytest.mark.parametrize(
    ("one", "two", "pair", "arguments"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS]
)
def test_the_target_computes_what_the_source_did(one, two, pair, arguments):
    difference, report = transfer(one, two, pair.size, arguments)
    keys = [side.key for entry in report.entries if entry.target is None for side in entry.sources]
    assert len(keys) == len(set(keys))
    assert not {*keys} & {side.key for entry in report.entries if entry.target for side in entry.sources}
    if pair.apart:
        assert difference > 1e-5  # else it is not apart any more
    else:
        assert difference < 1e-5


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.family} {pair.names}")
def test_the_user_writes_at_most_eight_renamings(pair):
    for arguments in (pair.there, pair.back):
        mapping = arguments.get("mapping")
        assert not isinstance(mapping, ByStructure) or len(mapping.known) <= 8
