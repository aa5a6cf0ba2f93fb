"""What every data set demands of its objects: boxes by one rule, class names, ids that differ; and which it shows."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import torch

from transferkit.annotated import Presence, presence_of, truth, whole_numbers
from transferkit.errors import DataError, listed, raise_problems, require
from transferkit.sampler._source import tellers_of

Box = tuple[float, float, float, float]
BadBoxes = Literal["error", "cut", "skip", "keep"]
BadPhotos = Literal["error", "skip"]
BoxesOn = Literal["recorded", "stored", "shown"]

SLACK = 1.0  # pixels that a box may reach out of its image: tools round, or count from 0


class BoxRule:
    """What becomes of boxes that no object in a photo can have; all of them are found before anything is raised.

    A box may reach out of its photo by one pixel, and is cut there. Of others, ``"cut"`` keeps the part inside and
    leaves out those without one, ``"skip"`` leaves them out, ``"keep"`` keeps them as they are (but for those that
    are not four numbers, or end before they start), and ``"error"`` raises one error that lists them.

    Attributes:
        bad_boxes: The option.
        counts: How many boxes were ``cut``, ``skipped`` and ``kept``, and how many ``sizes`` of photos were wrong.
        problems: What was found and cannot be used.
        left_out: What is wrong with photos that are left out, of which ``bad_photos`` is ``"skip"``.
    """

    def __init__(self, bad_boxes: BadBoxes, bad_photos: BadPhotos | None = "error") -> None:
        options = ("error", "cut", "skip", "keep")
        require(bad_boxes in options, "bad_boxes", f"one of {', '.join(options)}", bad_boxes)
        require(bad_photos in ("error", "skip", None), "bad_photos", "'error' or 'skip'", bad_photos)
        self.bad_boxes, self.bad_photos = bad_boxes, bad_photos
        self.left_out: list[str] = []
        self.counts = dict.fromkeys(("cut", "skipped", "kept", "sizes"), 0)
        self.problems: list[str] = []
        self._faults: set[str] = set()  # "usable", "unusable", "size"

    def __call__(self, sides: Sequence[Any], image_size: tuple[int, int], name: str) -> Box | None:
        """Return a box as the option wants it.

        Args:
            sides: xmin, ymin, xmax, ymax; whatever the file says.
            image_size: ``(height, width)``, in the boxes' frame.
            name: The file and the box, for the message.

        Returns:
            ``None`` for a box that is left out.
        """
        height, width = image_size
        box = tuple(map(number_of, sides))
        fault, usable = _fault(box, image_size)
        if not usable or len(box) != 4:
            self._without_use(f"{name} {fault}")
            return None
        xmin, ymin, xmax, ymax = box
        inside = max(xmin, 0.0), max(ymin, 0.0), min(xmax, float(width)), min(ymax, float(height))
        if self.bad_boxes == "keep":
            self.counts["kept"] += bool(fault) or inside != box
            return xmin, ymin, xmax, ymax
        some = inside[0] < inside[2] and inside[1] < inside[3]
        if not fault or (self.bad_boxes == "cut" and fault == _OUTSIDE and some):
            self.counts["cut"] += inside != box
            return inside
        if self.bad_boxes == "error":
            self._faults.add("usable")
            self.problems.append(f"{name} {fault}, {width} x {height} (w x h)")
        else:
            self.counts["skipped"] += 1
        return None

    def flag(self, value: Any, name: str) -> bool | None:
        """Return a flag that is written as 0 or 1, or true or false; ``None`` leaves its object out."""
        if isinstance(value, (bool, int, float)) and value in (0, 1):
            return bool(value)
        self._without_use(f"{name} must be 0 or 1, got {value!r:.40}")
        return None

    def wrong_size(self, problem: str) -> bool:
        """Note a photo that is not of the size that is recorded; return whether its objects are used all the same."""
        self.counts["sizes"] += 1
        if self.bad_boxes == "error":
            self._faults.add("size")
            self.problems.append(problem)
        return self.bad_boxes in ("cut", "keep")

    def photo(self, problem: str) -> None:
        """Note a photo that cannot be used, or what is said of it."""
        if self.bad_photos == "skip":
            self.left_out.append(problem)
        else:
            self._faults.add("photo")
            self.problems.append(problem)

    def raise_problems(self, heading: str, others: Sequence[str] = (), advice: str = "") -> None:
        """Raise what was found, and what else was, with the options that help.

        Raises:
            DataError: There is a problem.
        """
        lines = [advice] if advice else []
        ways = ['"skip" leaves these objects out']
        if "unusable" not in self._faults:
            ways.insert(0, '"keep" keeps boxes as they are')
        if self.bad_boxes != "keep":
            ways.insert(0, '"cut" keeps the part of a box inside the photo and leaves out those without one')
        if "size" in self._faults:
            lines.append('a photo of another size: "cut" and "keep" take its boxes as pixels of the photo')
        if "photo" in self._faults:
            lines.append('bad_photos="skip" leaves out photos that cannot be used')
        if self._faults - {"photo"}:
            lines.insert(0, f"bad_boxes={'; '.join(ways)}")
        raise_problems([*others, *self.problems], heading, "\n".join(lines))

    def add(self, other: BoxRule) -> None:
        """Add what another rule found."""
        self.problems += other.problems
        self._faults |= other._faults

    def _without_use(self, problem: str) -> None:
        if self.bad_boxes in ("cut", "skip"):
            self.counts["skipped"] += 1
        else:
            self._faults.add("unusable")
            self.problems.append(problem)


def require_frame(boxes_on: str, frames: Sequence[str] = ("recorded", "stored", "shown")) -> None:
    """Raise unless ``boxes_on`` is one of the frames that boxes can be in."""
    require(boxes_on in frames, "boxes_on", f"one of {', '.join(frames)}", boxes_on)


def number_of(value: Any) -> float:
    """Return a number as a float; NaN for anything else, such as text and bool."""
    if type(value) is float:  # as nearly all of many are
        return value
    try:
        value = value.item() if hasattr(value, "item") else value
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except (OverflowError, RuntimeError, ValueError):  # a number too large, or a tensor of many
        return math.nan


_OUTSIDE = "reaches out of the image"


def _fault(box: Sequence[float], image_size: tuple[int, int]) -> tuple[str, bool]:
    """Return what is wrong with a box, or "", and whether it is one at all."""
    if len(box) != 4 or not all(map(math.isfinite, box)):
        return "is not four numbers", False
    height, width = image_size
    xmin, ymin, xmax, ymax = box
    if xmax < xmin or ymax < ymin:
        return "is inverted: it ends before it starts", False
    if min(xmin, ymin, width - xmax, height - ymax) < -SLACK:
        return _OUTSIDE, True
    if min(xmax, width) <= max(xmin, 0) or min(ymax, height) <= max(ymin, 0):
        return "is empty", True
    if max(xmax, ymax) <= 1 < max(image_size) and not all(side.is_integer() for side in box):
        return (
            "is smaller than a pixel; where its numbers are shares of the width and height, give pixels",
            True,
        )
    return "", True


# Names: of classes, and of images.

PLAIN_TEXT = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]+")
"""Text that every file can hold, XML too."""


@lru_cache(maxsize=1024)  # of classes, which are few
def form_of(name: str) -> str:
    """Return the form in which names are compared: Unicode writes one letter in several ways."""
    return unicodedata.normalize("NFC", name.strip())


def numbers_of(class_names: Sequence[str]) -> dict[str, int]:
    """Return the number of each class but the background, by the form in which names are compared."""
    return {form_of(name): number for number, name in enumerate(class_names) if number > 0}


def repeated(names: Iterable[Any]) -> list[str]:
    """Return what occurs more than once among names, as text."""
    return [name for name, count in Counter(map(str, names)).items() if count > 1]


def checked_class_names(class_names: Sequence[str], *, add_background: bool) -> tuple[str, ...]:
    """Return class names with the background first, all different.

    Args:
        class_names: (K,) or (K - 1,) names.
        add_background: Put ``"background"`` before them if it is not there, as can be done where objects have names;
            where they have numbers, that would give them other names.

    Raises:
        ArgumentError: Not so.
    """
    names = () if isinstance(class_names, str) else tuple(class_names)
    text = all(isinstance(name, str) and form_of(name) for name in names)
    if text and names[:1] != ("background",):
        require(
            add_background,
            "class_names",
            'names of the classes 0, 1 and so on, "background" first, so that it is clear what class 1 is called',
            class_names,
        )
        names = ("background", *names)
    unique = text and len(set(map(form_of, names))) == len(names)
    require(
        unique and len(names) > add_background,
        "class_names",
        "different names, 'background' only at the start",
        class_names,
    )
    return names


def require_different(argument: str, values: Sequence[Any]) -> None:
    """Raise if two of ``values`` are the same text.

    Raises:
        DataError: Naming them.
    """
    if twice := repeated(values):
        raise DataError(f"{argument} must be different, these are not: {listed(list(map(repr, twice)))}")


# Which classes the photos of any data set show.


def truth_of(photos: Any, num_classes: int) -> Presence:
    """Return the classes that each photo shows; a data set without ``presence()`` is read once."""
    tellers = tellers_of(photos, "presence")
    if tellers is not None:
        shares: dict[int, tuple[Any, list[int], list[int]]] = {}  # each is asked once, not once a photo
        for row, (data, place) in enumerate(tellers):
            _, rows, places = shares.setdefault(id(data), (data, [], []))
            rows.append(row)
            places.append(place)
        told = [(data.presence(), torch.tensor(places)) for data, _, places in shares.values()]
        order = torch.tensor([row for _, rows, _ in shares.values() for row in rows]).argsort()
        flags = [getattr(one, "boxed", None) for one, _ in told]  # a user's may not have it
        known = torch.cat(
            [
                torch.ones(len(places), dtype=torch.bool) if flag is None else flag[places]
                for flag, (_, places) in zip(flags, told, strict=True)
            ]
        )
        return Presence(
            torch.cat([one.present[places] for one, places in told])[order],
            torch.cat([one.difficult_only[places] for one, places in told])[order],
            None if known.all() else known[order],
        )
    boxed = []

    def objects() -> Iterator[tuple[Sequence[int], Sequence[bool]]]:
        for place in range(len(photos)):
            item = photos[place]
            boxed.append(getattr(item, "image_labels", None) is None)
            yield _objects_of(item, place, num_classes)

    return presence_of(objects(), num_classes, boxed)


def _objects_of(item: Any, place: int, num_classes: int) -> tuple[Sequence[int], Sequence[bool]]:
    labels = getattr(item, "image_labels", None)
    classes = whole_numbers("classes", item.classes if labels is None else labels).reshape(-1).tolist()
    wrong = [number for number in classes if not 0 < number < num_classes]
    if wrong:
        raise DataError(
            f"photo {place} has an object of class {wrong[0]}, but there are class names for 1 to {num_classes - 1}; "
            "give class_names for all classes"
        )
    difficult = getattr(item, "difficult", None) if labels is None else None
    flags = [False] * len(classes) if difficult is None else truth("difficult", difficult).reshape(-1).tolist()
    return classes, flags
