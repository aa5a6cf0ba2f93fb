"""What a folder of photos holds and what is wrong with it; and a split that never parts two copies of a photo."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from transferkit.datasets._objects import truth_of
from transferkit.datasets.opening import PhotoFolder, chosen_format, open_photos
from transferkit.display import text_table
from transferkit.errors import DataError, TransferKitError, harmless, require
from transferkit.optimization import hold_out
from transferkit.progress import Progress, track
from transferkit.sampler._source import teller_of, tellers_of

_FEW = 10  # photos of a class, under which no figure of it says much
_NEAR = 2  # bits of 64 in which the differences of two nearly equal photos differ


class Content(NamedTuple):
    """What a photo is: digests of its file and of its pixels, and which of its 64 parts are darker than the next."""

    digests: tuple[str, ...]
    darker: tuple[bool, ...]
    fault: str


def contents_of(dataset: Any, progress: Progress = False) -> list[Content]:
    """Read and decode every photo once; in threads if the data sets are this package's own."""
    tellers = tellers_of(dataset, "photo_file")
    own = tellers is not None and all(type(data).__module__.startswith("transferkit.") for data, _ in tellers)
    with ThreadPoolExecutor(None if own else 1) as pool:
        found = pool.map(lambda index: _content(dataset, index), range(len(dataset)))
        return list(track(found, progress, total=len(dataset), description="look at", unit="photo"))


def _content(dataset: Any, index: int) -> Content:
    digests, told = [], teller_of(dataset, index, "photo_file")
    try:
        file = told and told[0].photo_file(told[1])
        if file:
            digests.append("file " + hashlib.blake2b(Path(file[0]).read_bytes(), digest_size=16).hexdigest())
        image = dataset[index].image
    except (TransferKitError, OSError) as error:
        return Content(tuple(digests), (), str(error))
    pixels = np.ascontiguousarray(torch.as_tensor(image).cpu().permute(1, 2, 0))
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    if pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        return Content((*digests, f"pixels {pixels.shape} {pixels.dtype} {digest}"), (), "")
    small = Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.int16)
    darker = (
        (levels[:, :-1] < levels[:, 1:]).reshape(-1).tolist() if levels.std() > 4 else []
    )  # plain ones have none
    return Content((*digests, f"pixels {pixels.shape} {digest}"), tuple(darker), "")


def _copies(contents: Sequence[Content]) -> list[int]:
    """Return for each photo the first one of those with its bytes or pixels."""
    groups, first = list(range(len(contents))), dict[str, int]()
    for place, content in enumerate(contents):
        same = {groups[first.setdefault(digest, place)] for digest in content.digests}
        if len(same) > 1 or same != {groups[place]}:
            groups = [min(same, default=one) if one in {*same, place} else one for one in groups]
    return groups


def _nearly_equal(contents: Sequence[Content], groups: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of photos that are no copies and look the same at 9 x 8 pixels."""
    places = [place for place, content in enumerate(contents) if content.darker and groups[place] == place]
    signs = torch.tensor([contents[place].darker for place in places]).float().reshape(-1, 64) * 2 - 1
    for start in range(0, len(places), 1024):
        near = signs[start : start + 1024] @ signs[start:].T >= 64 - 2 * _NEAR
        for row, column in near.triu(diagonal=1).nonzero().tolist():
            yield places[start + row], places[start + column]


def split(
    dataset: Any, fraction: float = 0.2, seed: int = 0, progress: Progress = False
) -> tuple[Subset[Any], Subset[Any]]:
    """Split photos so that both parts have their share of every class, and no photo is in both.

    All photos are decoded, since two files of other bytes may hold the same pixels.

    Args:
        dataset: A data set with ``class_names``.
        fraction: Fraction of the photos that is held out, in (0, 1).
        seed: Decides which.
        progress: Counts photos.

    Returns:
        The photos to train on, and those held out. The same for the same photos and seed.

    Raises:
        ArgumentError: No class names, or fewer than two photos that differ.

    Example:
        >>> from transferkit.datasets import ImageListDataset
        >>> images = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (1, 2, 3, 4, 4)]
        >>> train, held = split(ImageListDataset(images, image_labels=[[1]] * 5), fraction=0.25)
        >>> len(train) + len(held), len({train[i].image.max().item() for i in range(len(train))})
        (5, 3)
    """
    named = tellers_of(dataset, "class_names")
    require(bool(named), "dataset", "one with class_names", dataset)
    groups = np.array(_copies(contents_of(dataset, progress)))
    firsts, place = np.unique(groups, return_inverse=True)
    shown = truth_of(dataset, len(named[0][0].class_names) if named else 0).present
    rows = torch.stack([shown[torch.from_numpy(groups == first)].any(dim=0) for first in firsts])
    train, held = (np.isin(place, part).nonzero()[0].tolist() for part in hold_out(rows, fraction, seed))
    return Subset(dataset, train), Subset(dataset, held)


@dataclass(frozen=True)
class PhotoCheck:
    """What a folder of photos holds and what is wrong with it.

    Attributes:
        path: The folder or file.
        format: As of :class:`PhotoFolder`.
        options: With which :func:`open_photos` reads it all the same; ``None`` if nothing helps.
        sets: Of each image set, how many ``photos``, ``boxes`` and photos with ``labels_alone`` it has, and how many
            photos each of its ``classes`` has.
        problems: What is wrong: all that no option was asked to forgive, photos that cannot be decoded, and photos of
            which two image sets have copies.
        notes: What may be meant: classes of few photos, copies in one image set, photos that are not used.
        near: Pairs of photos that look nearly the same, of which you decide.
    """

    path: Path
    format: str
    options: dict[str, str] | None
    sets: dict[str, dict[str, Any]]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    near: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        each = self.sets.values()
        head = ["photos", *(f"{name} ({found['photos']})" for name, found in self.sets.items())]
        names = dict.fromkeys(name for found in each for name in found["classes"])
        rows = [[name, *(str(found["classes"].get(name, 0)) for found in each)] for name in names]
        for key in ("boxes", "labels alone"):
            rows += [[key, *(str(found[key.replace(" ", "_")]) for found in each)]]
        lines = [f"{self.path}: format {self.format}", *text_table([head, *rows], right=range(1, len(head)))]
        pairs = [f"{first} and {second} look nearly the same" for first, second in self.near]
        for title, found in (("problems", self.problems), ("notes", self.notes), ("near duplicates", pairs)):
            lines += [f"{title}: {len(found) or 'none'}", *(f"  - {harmless(words)}" for words in found)]
        if self.options:
            said = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            lines.append(f"to read it all the same: open_photos({str(self.path)!r}, {said})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self) | {"path": str(self.path)}


def check(path: Path | str, format: str | None = None, *, progress: Progress = False) -> PhotoCheck:
    """Read a folder of photos, decode all of them, and tell what it holds and all that is wrong.

    Args:
        path: As of :func:`open_photos`.
        format: Likewise.
        progress: Counts photos.

    Raises:
        MissingFileError: There is no such folder, or nothing that says what its photos show.
        DataError: Several formats fit.
    """
    path = Path(path)
    format, _ = chosen_format(path, format)
    opened, options, problems = _opened(path, format)
    sets = {} if opened is None else opened.datasets
    described = {name: _described(data) for name, data in sets.items()}
    contents = contents_of(ConcatDataset(sets.values()), progress) if sets else []
    problems += [content.fault for content in contents if content.fault]
    notes = list(_notes(sets, described))
    groups = _copies(contents)
    called = [(name, f"{name} {photo}") for name, data in sets.items() for photo in data.ids]
    for first in [first for first, count in Counter(groups).items() if count > 1]:
        alike = [each for each, group in zip(called, groups, strict=True) if group == first]
        words = f"{' and '.join(photo for _, photo in alike)} are one photo"
        if len({name for name, _ in alike}) > 1:
            problems.append(f"{words}, in two image sets")
        else:
            notes.append(words)
    near = tuple((called[one][1], called[other][1]) for one, other in _nearly_equal(contents, groups))
    return PhotoCheck(path, format, options, described, tuple(problems), tuple(notes), near)


def _opened(path: Path, format: str) -> tuple[PhotoFolder | None, dict[str, Any] | None, list[str]]:
    """Return the folder as the first option reads it that can, which one that is, and all that is wrong."""
    problems: dict[str, None] = {}
    boxes: list[Mapping[str, Any]] = [{}, {"bad_boxes": "cut"}, {"bad_boxes": "skip"}]
    for options in [{**each, **more} for more in ({}, {"bad_photos": "skip"}) for each in boxes]:
        if format not in ("table", "classes") or "bad_boxes" not in options:
            try:
                return open_photos(path, format, **options), options, list(problems)
            except DataError as error:
                problems.update(dict.fromkeys(error.problems or [str(error)]))
    return None, None, list(problems)


def _described(data: Any) -> dict[str, Any]:
    presence = data.presence()
    counts = dict(zip(data.class_names, presence.present.sum(dim=0).tolist(), strict=True))
    boxes = sum(len(data.objects(index)[0]) for index in range(len(data)))
    alone = 0 if presence.boxed is None else int((~presence.boxed).sum())
    counts.pop("background")
    return {"photos": len(data), "boxes": boxes, "labels_alone": alone, "classes": counts}


def _notes(sets: Mapping[str, Any], described: Mapping[str, Any]) -> Iterator[str]:
    """Yield what may be meant, and may not."""
    for name, data in sets.items():
        counts = described[name]["classes"].items()
        yield from (f"{name}: class {each!r} has {n or 'no'} photos" for each, n in counts if n < _FEW)
        if unused := len(getattr(data, "unlisted", ())):
            yield f"{name}: {unused} photos are there of which nothing is said; they are not used"
        if none := int((~data.presence().present.any(dim=1)).sum()):
            yield f"{name}: {none} photos show none of the classes"
