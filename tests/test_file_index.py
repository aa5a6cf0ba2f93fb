"""What was found in files is remembered while they stay as they were, whatever happens to the index."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from transferkit.file_index import FileIndex, Stamp, found_in, remembering

NAMES = ("a", "tab\t and line\n", "\udcff", "é", "")


def files(folder: Path) -> dict[str, Path]:
    found = {name: folder / f"{place}.txt" for place, name in enumerate(NAMES)}
    for path in found.values():
        path.write_text("x")
    return found


@pytest.mark.parametrize("seed", range(5))
def test_several_writers_remember_what_any_of_them_found(tmp_path: Path, seed: int) -> None:
    known, draw = files(tmp_path), random.Random(seed)
    indexes, last = [FileIndex(tmp_path / "index") for _ in range(3)], dict[str, list[Any]]()
    for _ in range(40):
        index, name = draw.choice(indexes), draw.choice(NAMES)
        last[name] = [draw.random(), [draw.choice(["", "\n", None])], name]
        index.put(name, Stamp.of(known[name]), last[name])
        index.save()
        for other in indexes:
            other.refresh()
    for index in (*indexes, FileIndex(tmp_path / "index")):
        assert {name: index.get(name, known[name]) for name in last} == last


@pytest.mark.parametrize("seed", range(40))
def test_damage_costs_rows_and_never_changes_one(tmp_path: Path, seed: int) -> None:
    known, draw = files(tmp_path), random.Random(seed)
    index = FileIndex(tmp_path / "index")
    for name, path in known.items():
        index.put(name, Stamp.of(path), [name])
        index.save()
    content = bytearray((tmp_path / "index").read_bytes())
    if seed % 2:
        content = content[: draw.randrange(len(content))]  # a writer was killed
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    (tmp_path / "index").write_bytes(content)
    again = FileIndex(tmp_path / "index")
    found = {name: again.get(name, path) for name, path in known.items()}
    lost = [name for name in NAMES if found[name] is None]
    assert all(found[name] == [name] for name in NAMES if name not in lost)
    assert seed % 2 or len(lost) <= 2
    again.put("a", Stamp.of(known["a"]), ["anew"])
    again.save()
    assert FileIndex(tmp_path / "index").get("a", known["a"]) == ["anew"]


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path, index, reads = tmp_path / "file", tmp_path / "new" / "index", list[str]()

    def read() -> list[str]:
        reads.append(path.read_text())
        return reads[-1:]

    def found() -> list[str]:
        with remembering(index):
            return found_in(path, "text", read)

    path.write_text("one")
    assert found() == found() == ["one"] and len(reads) == 2  # so soon after, another change might not show
    time.sleep(0.1)
    assert found() == found() == ["one"] and len(reads) == 3
    path.write_text("two")
    time.sleep(0.1)
    assert found() == found() == ["two"] and len(reads) == 4
    assert found_in(path, "text", read) == ["two"] and len(reads) == 5  # outside of the block


def test_what_is_outdated_is_left_out_in_the_end(tmp_path: Path) -> None:
    path = files(tmp_path)["a"]
    for number in range(3):
        index = FileIndex(tmp_path / "index")
        for round in range(2000):
            index.put("a", Stamp.of(path), [number, round])
            index.save()
    assert len((tmp_path / "index").read_bytes().splitlines()) < 5000
    assert FileIndex(tmp_path / "index").get("a", path) == [2, 1999]


def test_an_index_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with remembering(tmp_path / "file" / "index"):
        assert found_in(tmp_path / "file", "text", lambda: [1]) == [1]
