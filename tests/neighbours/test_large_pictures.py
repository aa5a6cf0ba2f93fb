"""The measured pictures, small: pixels are right, each region is read once, and workers change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.neighbours import large_pictures
from tests.neighbours.large_pictures import CASES, VISITS, lines, measured
from transferkit.sampler import ArrayReader


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("name", CASES)
def test_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(large_pictures, "PATCHES", 2)
    monkeypatch.setattr(ArrayReader, "read", ArrayReader.read)  # to be counted, and put back
    case = CASES[name]
    case.write(tmp_path, 1100)
    alone, among = (measured(case, tmp_path, num_workers) for num_workers in (0, 4))
    assert alone["digest"] == among["digest"]
    assert alone["slices"] == among["slices"] == 0 and alone["resized"] <= 0.5 + 0.01  # to the nearest
    files = 2 if name.endswith("with a mask") else 1
    assert alone["regions"] == 2 * VISITS * files


@pytest.mark.parametrize("name", CASES)
def test_readers_and_their_use_take_few_lines(name: str) -> None:
    reader, use = lines(CASES[name])
    assert reader <= 16 and use <= 4
