"""Independent shards of a job: each runs for itself, on any machine and in any order, and a command joins them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transferkit.errors import ArgumentError, DataError, MissingFileError, StateError, listed, require
from transferkit.finetune.predictions import PredictionFile, finished_rows, head_of, write_records


@dataclass(frozen=True)
class Shard:
    """One of several shares of a sequence, cut into pieces of nearly one length.

    Attributes:
        number: Which, 1 to ``count``.
        count: How many there are.

    Example:
        >>> [list(Shard(number, 3).of(7)) for number in (1, 2, 3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        >>> Shard.parse("3/8").beside("out.csv").name
        'out.csv.3-of-8'
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        require(1 <= self.number <= self.count, "shard", "number/count, such as 3/8 of 1/8 to 8/8", self)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @staticmethod
    def parse(text: str) -> Shard:
        """Return the shard that ``"3/8"`` names.

        Raises:
            ArgumentError: It names none.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found:
            raise ArgumentError(f"shard must be number/count, such as 3/8 of 1/8 to 8/8, got {text!r}")
        return Shard(int(found[1]), int(found[2]))

    def of(self, length: int) -> range:
        """Return the places of this share among ``length``."""
        return range(length * (self.number - 1) // self.count, length * self.number // self.count)

    def beside(self, path: str | os.PathLike[str]) -> Path:
        """Return where this share of a file or folder goes."""
        path = Path(path)
        return path.with_name(f"{path.name}.{self.number}-of-{self.count}")


def shards_beside(path: str | os.PathLike[str]) -> list[Path]:
    """Return the shares that lie beside a file or folder, all of them, in their order.

    Raises:
        MissingFileError: There are none.
        DataError: Shares are missing, or of several counts; lists them.
    """
    path = Path(path)
    form = re.compile(re.escape(path.name) + r"\.([1-9]\d*)-of-([1-9]\d*)")
    found = [(match, one) for one in path.parent.glob("*-of-*") if (match := form.fullmatch(one.name))]
    shares = {Shard(int(match[1]), int(match[2])): one for match, one in found}
    if not shares:
        raise MissingFileError(f"no shard of {path} is there, such as {Shard(1, 8).beside(path).name}")
    counts = sorted({shard.count for shard in shares})
    if len(counts) > 1:
        several = " and ".join(map(str, counts))
        raise DataError(f"{path} was cut into {several} shards; delete those of an earlier job")
    wanted = [Shard(number, counts[0]) for number in range(1, counts[0] + 1)]
    missing = [shard for shard in wanted if shard not in shares]
    if missing:
        lacking = listed([str(shard) for shard in missing], 8)
        raise DataError(f"shards of {path} are not done: {lacking}; type their commands (again), then join")
    return [shares[shard] for shard in wanted]


def join_predictions(path: str | os.PathLike[str]) -> PredictionFile:
    """Write the predictions of all shards, which lie beside ``path``, to ``path``, as one job would have.

    Args:
        path: The ``.csv`` or ``.jsonl`` file that each shard's :meth:`SceneClassifier.predict_to` was given.

    Returns:
        The file, with what could not be used. The shards stay where they are.

    Raises:
        MissingFileError: There are no shards.
        DataError: A shard is missing or damaged.
        StateError: Shards were made by other classifiers, settings or photos; names what differs.
    """
    files = shards_beside(path)
    heads = [head_of(file) for file in files]
    _require_alike(files, heads)
    told = [int(head["photos"]) for head in heads]
    for place, (file, total) in enumerate(zip(files, told, strict=True), 1):
        share, rows = len(Shard(place, len(files)).of(total)), sum(1 for _ in finished_rows(file))
        if rows != share:
            raise DataError(
                f"{file} is damaged: it holds {rows} of {share} photos; delete it, and make it anew"
            )
    bad = {one["file"]: one["problem"] for file in files for one in finished_rows(file) if "problem" in one}
    names, labeled = heads[0]["class_names"], heads[0]["labeled"]
    write_records(Path(path), chain.from_iterable(map(finished_rows, files)), names, labeled)
    return PredictionFile(Path(path), told[0] - len(bad), bad)


def _require_alike(files: Sequence[Path], heads: Sequence[dict[str, Any]]) -> None:
    differ = list(_differences(files, heads))
    if differ:
        raise StateError(
            f"the shards cannot be joined: {'; '.join(differ)}; make those that are wrong anew, with --restart"
        )


def _differences(files: Sequence[Path], heads: Sequence[dict[str, Any]]) -> Iterator[str]:
    for file, head in zip(files, heads, strict=True):
        keys = [key for key in {**heads[0], **head} if head.get(key) != heads[0].get(key)]
        if keys:
            yield f"{file.name} was made with another {', '.join(keys)} than {files[0].name}"
