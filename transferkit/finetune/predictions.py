"""What a classifier says of new photos: in memory, or photo by photo in a file."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from transferkit.display import as_json
from transferkit.errors import ArgumentError, DataError, StateError, did_you_mean, require
from transferkit.files import faults_named, write_atomically
from transferkit.locks import lock_file
from transferkit.sampler._source import teller_of
from transferkit.scorer import PatchLog, score_map

Record = Mapping[str, Any]
"""What is said of one photo, as plain values; see :meth:`Predictions.records`."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of N photos for K classes.

    Attributes:
        ids: (N,) ids of the photos.
        class_names: (K,) class names, the background first.
        scores: (N, K) float64 on the CPU, the sum or mean over a photo's patches of probability^exponent. Scores rank
            photos; they are not probabilities. ``-inf`` for a photo without patches.
        best_probs: (N, K) float64, highest probability of a patch.
        best_boxes: (N, K, 4) float64 xyxy, pixels, box of that patch; ``None`` where boxes were not asked for.
        probs: (N, K) float64, probability that the class is in the photo; ``None`` for a classifier that was not
            calibrated.
        labels: (N, K) bool, whether the score reaches the class's threshold; ``None`` without thresholds.
        bad_photos: What is wrong with each photo that could not be used, by its id; they are not among the N.
        places: (N,) places of the photos in ``photos``.
        log: Probabilities of all patches, kept with ``predict(..., maps=True)``.
        photos: The data set of the photos, kept with ``predict(..., maps=True)``.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.0, 0.9, 0.1]], dtype=torch.float64)
        >>> boxes = torch.zeros(1, 3, 4, dtype=torch.float64)
        >>> Predictions(("a.jpg",), ("background", "cat", "dog"), scores, scores, boxes).top(1)
        [('a.jpg', 'cat', 0.9)]
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    scores: Tensor
    best_probs: Tensor
    best_boxes: Tensor | None = None
    probs: Tensor | None = None
    labels: Tensor | None = None
    bad_photos: Mapping[str, str] = field(default_factory=dict)
    places: Sequence[int] = ()
    log: PatchLog | None = None
    photos: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        maps = ", with maps" if self.log is not None else ""
        bad = f", {len(self.bad_photos)} more that cannot be used" if self.bad_photos else ""
        return f"Predictions({len(self)} photos, {len(self.class_names) - 1} classes{maps}{bad})"

    def top(self, count: int = 1) -> list[tuple[str, str, float]]:
        """Return the ``count`` best classes of each photo, without the background.

        Returns:
            Rows of photo id, class name and score; photo by photo, the highest score first.
        """
        require(count >= 1, "count", "1 or more", count)
        rows = []
        for name, scores in zip(self.ids, self.scores[:, 1:], strict=True):
            best = scores.topk(min(count, len(scores)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            rows += [(name, self.class_names[1 + place], value) for place, value in found]
        return rows

    def map(self, photo: int, class_name: str) -> Tensor:
        """Return the map of where in a photo a class is seen.

        Args:
            photo: Place of the photo among the N, 0-based.
            class_name: A name in ``class_names``.

        Returns:
            (H, W) float64 on the CPU; see :func:`~transferkit.scorer.score_map`.

        Raises:
            StateError: The predictions were made without ``maps=True``.
            ArgumentError: There is no such class.
        """
        if self.log is None:
            raise StateError("the patches that maps are made of were not kept; use predict(..., maps=True)")
        if class_name not in self.class_names:
            raise ArgumentError(
                f"class_name must be one of {', '.join(self.class_names)}, got {class_name!r}"
                f"{did_you_mean(class_name, self.class_names)}"
            )
        place = self.places[photo] if self.places else photo
        probs, boxes = self.log.patches(place)
        size = tuple(self.photos[place].image.shape[-2:])
        column = self.class_names.index(class_name)
        return score_map(probs[:, column : column + 1], boxes, size)[0]

    def records(self) -> Iterator[Record]:
        """Yield what is said of each photo: ``file``, ``scores``, ``probabilities``, ``labels`` and ``boxes``.

        All but ``file`` and ``labels`` are by class name. What is not known is left out; a score of ``-inf`` is
        ``None``. Photos that cannot be used come last, as ``file`` and ``problem``.
        """
        names = self.class_names[1:]
        for row, name in enumerate(self.ids):
            said: dict[str, Any] = {"file": name}
            for key, values in (
                ("scores", self.scores),
                ("probabilities", self.probs),
                ("boxes", self.best_boxes),
            ):
                if values is not None:
                    said[key] = dict(zip(names, values[row, 1:].tolist(), strict=True))
            said["scores"] = {
                key: value if value > -math.inf else None for key, value in said["scores"].items()
            }
            if self.labels is not None:
                flags = self.labels[row, 1:].tolist()
                said["labels"] = [key for key, flag in zip(names, flags, strict=True) if flag]
            yield said
        for name, problem in self.bad_photos.items():
            yield {"file": name, "problem": problem}

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write a ``.csv`` table or ``.jsonl`` lines, as the suffix says; the file is whole or not written.

        The table has the file, one column a class with its score, and the labels, separated by ``;``. Photos that
        cannot be used have no row in it. The lines are :meth:`records`.
        """
        return write_records(_with_suffix(path), self.records(), self.class_names, self.labels is not None)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the table of :meth:`write`, whatever the suffix."""
        return write_records(Path(path), self.records(), self.class_names, self.labels is not None, table=True)

    def to_jsonl(self, path: str | os.PathLike[str]) -> Path:
        """Write the lines of :meth:`write`, whatever the suffix."""
        return write_records(Path(path), self.records(), self.class_names, self.labels is not None, table=False)


# Files. What is said goes line by line to a journal beside the file, so that a job that was stopped goes on, and
# becomes the file at the end.


@dataclass(frozen=True)
class PredictionFile:
    """Predictions that were written.

    Attributes:
        path: The file.
        photos: Number of photos in it.
        bad_photos: What is wrong with each photo that could not be used, by its id.
        resumed: Number of photos that an earlier job had done.
    """

    path: Path
    photos: int
    bad_photos: Mapping[str, str]
    resumed: int = 0


Lots = Callable[[Any, int], Iterable[Sequence[Record]]]
"""Yields the records of a data set from a photo on, some photos at a time, in their order."""


def write_predictions(
    path: str | os.PathLike[str],
    data_sets: Iterable[tuple[Any, Sequence[str]]],
    lots: Lots,
    *,
    class_names: Sequence[str],
    labeled: bool,
    made_by: Mapping[str, Any],
    resume: bool = True,
    shard: Path | None = None,
) -> PredictionFile:
    """Write predictions to a file, in memory that does not grow with the photos.

    Args:
        path: ``.csv`` or ``.jsonl``.
        data_sets: The photos, and their ids.
        lots: Predicts them.
        class_names: (K,) names.
        labeled: Whether there are labels.
        made_by: What the rows depend on, as plain values.
        resume: Go on where a job that was stopped had come to.
        shard: Where the journal goes, whole, in place of the file: of a share of the photos.
    """
    path = _with_suffix(path) if shard is None else shard
    with lock_file(path, path.with_name(f".{path.name}.lock")):
        part = path.with_name(f"{path.name}.part")
        if shard is not None and shard.exists() and not part.exists():
            with faults_named(shard):
                shard.rename(part)
        journal = _Journal(part, made_by, resume)
        resumed = 0
        try:
            for data, ids in data_sets:
                start = journal.keep_same(data, ids)
                resumed += start
                for records in lots(data, start) if start < len(ids) else ():
                    journal.add(records, data)
        finally:
            journal.close()
        bad = {one["file"]: one["problem"] for one in journal.records() if "problem" in one}
        if shard is None:
            write_records(path, journal.records(), class_names, labeled)
            journal.path.unlink()
        else:
            journal.path.replace(shard)
    return PredictionFile(path, journal.written - len(bad), bad, resumed)


class _Journal:
    """Lines of JSON: what the rows depend on, then a row a photo with the size and time of its file.

    Attributes:
        path: Its file.
        written: How many of its rows hold.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any], resume: bool) -> None:
        self.path, self.written, self._place = path, 0, 0
        head = json.loads(as_json(made_by))
        with faults_named(path):
            if not (resume and path.exists()):
                path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            self._file: IO[bytes] = path.open("r+b")
        self._require(head)
        self._known: list[tuple[str, Any]] = []
        self._ends = [self._file.tell()]  # of the head, and of each row
        while _is_row(row := _parsed(line := self._file.readline())) and line.endswith(b"\n"):
            self._known.append((row["file"], row["stamp"]))
            self._ends.append(self._file.tell())

    def _require(self, head: Mapping[str, Any]) -> None:
        first = _parsed(self._file.readline())
        if first != head:
            self._file.close()
            differ = [key for key in head if not isinstance(first, dict) or first.get(key) != head[key]]
            raise StateError(
                f"{self.path} was begun with another {', '.join(differ)}; delete it, or begin anew with resume=False"
            )

    def keep_same(self, data: Any, ids: Sequence[str]) -> int:
        """Return how many of the next photos have a row that holds; drop the rows from the first other one on."""
        same = 0
        for (name, stamp), wanted in zip(self._known[self.written :], ids, strict=False):
            if name != wanted or stamp != _stamp(data, same):
                break
            same += 1
        self.written, self._place = self.written + same, same
        if same < len(ids):
            del self._known[self.written :], self._ends[self.written + 1 :]
            self._file.seek(self._ends[self.written])
            self._file.truncate()
        return same

    def add(self, records: Sequence[Record], data: Any) -> None:
        """Write the rows of the next photos, and flush them."""
        with faults_named(self.path):
            for record in records:
                self._file.write(json.dumps({**record, "stamp": _stamp(data, self._place)}).encode() + b"\n")
                self._ends.append(self._file.tell())
                self._place += 1
            self._file.flush()
        self.written += len(records)

    def records(self) -> Iterator[Record]:
        """Yield the rows that hold."""
        return islice(finished_rows(self.path), self.written)

    def close(self) -> None:
        self._file.close()


def head_of(journal: Path) -> dict[str, Any]:
    """Return what the rows of a journal depend on."""
    with journal.open("rb") as file:
        head = _parsed(file.readline())
    if not isinstance(head, dict) or not {"photos", "class_names", "labeled"} <= head.keys():
        raise DataError(f"{journal} is not a shard of predictions, or damaged; delete it, and make it anew")
    return head


def finished_rows(journal: Path) -> Iterator[Record]:
    """Yield the rows of a journal."""
    with journal.open("rb") as file:
        for line in islice(file, 1, None):
            row = _parsed(line)
            if not _is_row(row):
                return
            row.pop("stamp")
            yield row


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and {"file", "stamp"} <= row.keys()


def _stamp(data: Any, place: int) -> list[int] | None:
    """Return the size and time of change of a photo's file; ``None`` for one in memory."""
    teller = teller_of(data, place, "photo_file")
    found = teller and teller[0].photo_file(teller[1])
    try:
        status = Path(found[0]).stat() if found else None
    except OSError:
        return None
    return None if status is None else [status.st_size, status.st_mtime_ns]


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    require(Path(path).suffix.lower() in (".csv", ".jsonl"), "path", "a .csv or .jsonl file", os.fspath(path))
    return Path(path)


def write_records(
    path: Path,
    records: Iterable[Record],
    class_names: Sequence[str],
    labeled: bool,
    *,
    table: bool | None = None,
) -> Path:
    """Write records as a table or as JSON lines; as the suffix says unless told."""
    names, table = class_names[1:], path.suffix.lower() == ".csv" if table is None else table

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        rows = csv.writer(text, lineterminator="\n")
        if table:
            rows.writerow(["file", *names, *(["labels"] if labeled else [])])
        for record in records:
            if not table:
                text.write(json.dumps(record, ensure_ascii=False) + "\n")
            elif "problem" not in record:
                scores = [
                    "" if record["scores"][name] is None else repr(record["scores"][name]) for name in names
                ]
                rows.writerow([record["file"], *scores, *([";".join(record["labels"])] if labeled else [])])
        text.flush()
        text.detach()

    return write_atomically(path, write)
