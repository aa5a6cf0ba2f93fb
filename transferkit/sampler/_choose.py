"""One image's patches: laid, labeled and chosen, as a pure function of (seed, epoch, image)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL.Image import DecompressionBombError
from torch import Tensor
from torch.utils.data import Dataset, Subset

from transferkit.errors import ArgumentError, DataError, require
from transferkit.labeling import IGNORE, Rule, label_patches
from transferkit.sampler._source import PatchSource, PixelSource, call, teller_of
from transferkit.sampler._workers import Visit, Workers
from transferkit.sampler.balance import Balance
from transferkit.sampler.schedule import generator

# What data sets raise for a file that cannot be read or decoded; Pillow's plugins raise all of these.
BAD_IMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, DecompressionBombError)


class ChosenPatches(NamedTuple):
    """What was chosen of an image, and what it can be made from.

    Attributes:
        image_index: The image's place in the data set.
        content: What the source makes minibatches from; for patches to be cut, the image, (C, H, W).
        boxes: (B, 4) float64 xyxy, pixels.
        labels: (B,) int64.
        maps: What further maps of the patches are made from, by name.
        laid: How many patches the image has; B of them were chosen.
    """

    image_index: int
    content: Tensor
    boxes: Tensor
    labels: Tensor
    maps: dict[str, Tensor]
    laid: int


class BadImage(NamedTuple):
    """An image that could not be used.

    Attributes:
        image_index: The image's place in the data set.
        problem: What is wrong with it.
        error: What reading or labeling it raised.
        skippable: Whether that may be passed over.
    """

    image_index: int
    problem: str
    error: Exception
    skippable: bool

    @staticmethod
    def of(index: int, error: Exception, kinds: tuple[type[Exception], ...] = BAD_IMAGE) -> BadImage:
        """Return the image that raised an error, to be passed over if that is of these ``kinds``."""
        skippable = isinstance(error, kinds) and not isinstance(error, MemoryError)
        return BadImage(index, f"{type(error).__name__}: {error}", error, skippable)


@dataclass(frozen=True, eq=False)
class PatchChooser(Dataset["ChosenPatches | BadImage"]):
    """Decodes an image and chooses its patches; a data set of ``(epoch, image)``, for DataLoader's workers.

    Attributes:
        dataset: Of annotated images.
        source: Lays an image's patches.
        rule: Labels them.
        balance: Chooses among them.
        count: How many patches are wanted.
        seed: Of the choice.
        own_labels: Labels them in place of the rule.
        maps: Further maps of the patches, by name.
    """

    dataset: Any
    source: PatchSource
    rule: Rule
    balance: Balance
    count: int | None
    seed: int
    own_labels: Callable[[Any, Tensor], Tensor] | None = None
    maps: Mapping[str, PixelSource] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = self.own_labels
        require(own is None or callable(own), "labels", "called as (item, boxes), or None", own)
        require(isinstance(self.rule, Rule), "rule", "a value with a method label(boxes, objects)", self.rule)
        require(callable(self.balance), "balance", "called as (labels, count, generator)", self.balance)

    def __getitem__(self, visit: Visit) -> ChosenPatches | BadImage:
        found = self.choose(visit)
        if isinstance(found, BadImage):
            return found
        item, boxes, labels, rows = found
        chosen = boxes[rows]
        try:
            content = call(self.source.content, item, rows, chosen)
            maps = {name: source.content(item, rows, chosen) for name, source in self.maps.items()}
        except Exception as error:
            return BadImage.of(visit[1], error, (Exception,))
        return ChosenPatches(visit[1], content, chosen, labels[rows], maps, len(boxes))

    def choose(self, visit: Visit) -> tuple[Any, Tensor, Tensor, Tensor] | BadImage:
        """Return an image's item, all its patches and their labels, and the rows that are chosen; reads no region."""
        epoch, index = visit
        try:
            item = self.dataset[index]
        except Exception as error:  # whatever the fields' readers raise
            return BadImage.of(index, error, (Exception,))
        try:
            boxes = call(self.source.patches, item, generator(self.seed, epoch, index, "proposals"))
            labels = self.labels(index, item, boxes)
        except Exception as error:
            return BadImage.of(index, error)
        chosen = self.balance(labels, self.count, generator(self.seed, epoch, index, "balance"))
        return item, boxes, labels, _as_rows(chosen, len(labels), self.balance)

    def labels(self, index: int, item: Any, boxes: Tensor) -> Tensor:
        """Return the labels, (P,), of an annotated image's patches."""
        if self.own_labels is not None:
            return _as_labels(self.own_labels(item, boxes), len(boxes), self.own_labels)
        _check_objects(item)
        self._check_classes(index, item)
        labels = label_patches(
            boxes,
            item.boxes,
            item.classes,
            rule=self.rule,
            difficult=getattr(item, "difficult", None),
            truncated=getattr(item, "truncated", None),
        ).labels
        return _as_labels(labels, len(boxes), self.rule)

    def _check_classes(self, index: int, item: Any) -> None:
        """Raise if an object has a class for which the data set has no name."""
        teller = teller_of(self.dataset, index, "class_names")
        names = teller[0].class_names if teller else None
        if names is not None and item.classes.numel() and int(item.classes.max()) >= len(names):
            raise DataError(
                f"an object has class {int(item.classes.max())}, but class_names has {len(names)} names, background "
                f"first: classes 1 to {len(names) - 1}; correct either"
            )


def _check_objects(item: Any) -> None:
    """Raise unless an item has objects that a rule can use."""
    missing = [name for name in ("boxes", "classes") if not hasattr(item, name)]
    if missing:
        raise DataError(
            f"a data set's items must have image, boxes and classes, this {type(item).__name__} has no "
            f"{' and no '.join(missing)}; an adapter in transferkit.datasets may help, or labels= in place of a rule"
        )
    for name in ("boxes", "classes"):
        column = getattr(item, name)
        if not isinstance(column, Tensor):
            raise DataError(f"{name} must be a tensor, got {type(column).__name__}: wrap it in torch.as_tensor")


def _as_labels(labels: Any, patches: int, rule: object) -> Tensor:
    """Return a rule's labels, (P,) int64, or say what is wrong with them."""
    fits = isinstance(labels, Tensor) and labels.shape == (patches,) and not labels.is_floating_point()
    if not fits or bool(((labels < 0) & (labels != IGNORE)).any()):
        raise ArgumentError(
            f"rule must label {patches} patches with (P,) int64, 0 or more or IGNORE ({IGNORE}), got {labels!r:.80} "
            f"from {rule!r}"
        )
    return labels.long()  # type: ignore[no-any-return]


def _as_rows(chosen: Any, patches: int, balance: Balance) -> Tensor:
    """Return what a balance chose, (B,) int64, or say what is wrong with it."""
    rows = torch.as_tensor(chosen)
    if rows.numel() == 0:
        return rows.reshape(0).long()
    counted = rows.ndim == 1 and rows.dtype in (torch.int64, torch.int32)
    if not counted or int(rows.min()) < 0 or int(rows.max()) >= patches:
        found = f"from {rows.min()} to {rows.max()}" if counted else f"{tuple(rows.shape)} {rows.dtype}"
        raise ArgumentError(
            f"balance must return the rows of patches, (B,) whole numbers from 0 to {patches - 1}, got {found} "
            f"from {balance!r}"
        )
    return rows.long()


# How many patches each image will give, found with as little work as possible.


def patch_counts(
    chooser: PatchChooser, num_workers: int, note: Callable[[BadImage], object], **started: Any
) -> Sequence[int]:
    """Return the number of patches that each image gives, (N,); 0 for an image that cannot be used.

    No image is touched where the balance always chooses the same number. None is looked at where the number
    follows from how many patches there are, and the source knows that. Otherwise every image is opened and labeled
    once, by ``num_workers`` processes.

    Args:
        chooser: Of the patches.
        num_workers: Processes that decode.
        note: Called with an image that cannot be used, to raise or to list it.
        **started: How they are started, see :class:`Workers`.
    """
    size = getattr(chooser.balance, "size", None)
    images = len(chooser.dataset)
    found: Iterator[int | BadImage] | None = None
    if size is not None and chooser.source.always_some:
        least, most = size(1, chooser.count), size(2**62, chooser.count)
        if least is not None and least == most:
            return [least] * images
        if least is not None and chooser.source.available(chooser.dataset) is not None:
            found = (_count_told(chooser, index) for index in range(images))
    if found is None:
        workers = Workers(_Counted(chooser), num_workers, **started)
        found = workers.results([(0, index) for index in range(images)])
    counts = []
    for count in found:
        if isinstance(count, BadImage):
            note(count)
        counts.append(0 if isinstance(count, BadImage) else count)
    return counts


def _count_told(chooser: PatchChooser, index: int) -> int | BadImage:
    """Return how many patches an image gives, by its size, which the data set knows."""
    try:
        (patches,) = chooser.source.available(Subset(chooser.dataset, [index])) or ()
    except Exception as error:
        return BadImage.of(index, error)
    count: int = chooser.balance.size(patches, chooser.count)  # type: ignore[attr-defined]
    return count


@dataclass(frozen=True, eq=False)
class _Counted:
    chooser: PatchChooser

    @property
    def dataset(self) -> Any:
        return self.chooser.dataset

    def __getitem__(self, visit: Visit) -> int | BadImage:
        found = self.chooser.choose(visit)
        return found if isinstance(found, BadImage) else len(found[-1])
