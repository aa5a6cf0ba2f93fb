"""An image with its objects, and the table of classes present in each image of a set."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferkit.errors import ArgumentError, DataError


@dataclass(frozen=True)
class AnnotatedImage:
    """One image with its objects; any object with the same attributes serves as well.

    Attributes:
        image: (3, H, W) uint8, RGB. A sampler takes any number of channels and any real dtype, or what reads an
            image by region, see :class:`~transferkit.sampler.RegionReader`.
        boxes: (N, 4) float64, xyxy, pixels, 0-based and half-open.
        classes: (N,) int64 in 1..K-1; 0 is the background.
        difficult: (N,) bool, hard to recognize.
        truncated: (N,) bool, only partly inside its box.
        id: The image's name.
        image_labels: (n,) int64 in 1..K-1, the classes of an image of which it is not known where they are; ``None``
            for one whose objects are all in ``boxes``.
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor
    difficult: Tensor
    truncated: Tensor
    id: str
    image_labels: Tensor | None = None

    def __repr__(self) -> str:
        height, width = self.image.shape[-2:] if isinstance(self.image, Tensor) else self.image.size
        classes = self.classes if self.image_labels is None else self.image_labels
        return f"AnnotatedImage({self.id!r}, {height} x {width} (h x w), classes {classes.tolist()})"


@dataclass(frozen=True)
class Presence:
    """The classes present in each image: the ground truth of image scores.

    Attributes:
        present: (N, K) bool, true where an object of the class is in the image, difficult ones included.
        difficult_only: (N, K) bool, true where all objects of the class in the image are difficult. VOC's own
            evaluation ignores those images for that class.
        boxed: (N,) bool, true where boxes say where the objects are; ``None`` if that is so for all images.

    Column 0, the background, is false everywhere.
    """

    present: Tensor
    difficult_only: Tensor
    boxed: Tensor | None = None

    def image_targets(self) -> Tensor | None:
        """Return (N, K) float32, 1 where a class is present and 0 elsewhere, and NaN for images with boxes.

        ``None`` if all images have boxes.
        """
        if self.boxed is None or bool(self.boxed.all()):
            return None
        return self.present.float().masked_fill(self.boxed[:, None], torch.nan)


def presence_of(
    objects: Iterable[tuple[Sequence[int], Sequence[bool]]],
    num_classes: int,
    boxed: Sequence[bool] | None = None,
) -> Presence:
    """Return the presence table of images given as ``(classes, difficult)`` of their objects.

    Args:
        objects: One pair per image: class numbers in 1..K-1, and a flag for each.
        num_classes: K, counting the background.
        boxed: N flags, false for an image whose classes are known and not where they are; ``None`` if there is none.

    Raises:
        DataError: A class number that is not among them.

    Example:
        >>> presence_of([([1, 1, 2], [False, True, True])], num_classes=3).present.tolist()
        [[False, True, True]]
        >>> presence_of([([1, 1, 2], [False, True, True])], num_classes=3).difficult_only.tolist()
        [[False, False, True]]
    """
    count, everywhere, surely = 0, array("q"), array("q")  # places in the tables: a million images are many
    for row, (classes, difficult) in enumerate(objects):
        for number, hard in zip(classes, difficult, strict=True):
            if not 0 < number < num_classes:
                raise DataError(
                    f"image {row} has an object of class {number}, the classes are 1 to {num_classes - 1}"
                )
            (everywhere if hard else surely).append(row * num_classes + number)
        count = row + 1
    certain = torch.zeros(count, num_classes, dtype=torch.bool)
    certain.view(-1)[torch.tensor(surely, dtype=torch.int64)] = True
    present = certain.clone()
    present.view(-1)[torch.tensor(everywhere, dtype=torch.int64)] = True
    return Presence(present, present & ~certain, None if boxed is None else torch.tensor(boxed))


def shape_problems(scores: Tensor, **masks: Tensor) -> list[str]:
    """Return a line for each of ``masks`` that has not the scores' shape."""
    shape = tuple(scores.shape)
    return [
        f"{name} must be of the scores' shape {shape}, got {tuple(mask.shape)}"
        for name, mask in masks.items()
        if mask.shape != shape
    ]


def truth(argument: str, values: object) -> Tensor:
    """Return true and false for 0 and 1 of any dtype.

    Args:
        argument: Its name, for the message.
        values: Bool; or integers or floating point numbers that are 0 or 1.

    Raises:
        ArgumentError: There is another value among them, NaN included.

    Example:
        >>> truth("targets", torch.tensor([1.0, 0.0]))
        tensor([ True, False])
    """
    flags = as_tensor(argument, values, "true or false, or 0 and 1")
    if flags.dtype == torch.bool:
        return flags
    other = flags[(flags != 0) & (flags != 1)].reshape(-1)
    if len(other):
        first = ", ".join(str(value) for value in other[:3].tolist())
        raise ArgumentError(
            f"{argument} must be true or false, or 0 and 1, got {len(other)} other values: {first}"
        )
    return flags == 1


def whole_numbers(argument: str, values: object) -> Tensor:
    """Return numbers of any dtype as int64, if they are whole.

    Args:
        argument: Its name, for the message.
        values: Anything that ``torch.as_tensor`` takes.

    Raises:
        ArgumentError: There are others among them, NaN and bool included.

    Example:
        >>> whole_numbers("classes", [1.0, 2.0])
        tensor([1, 2])
        >>> whole_numbers("classes", [1.9])
        Traceback (most recent call last):
        transferkit.errors.ArgumentError: classes must be whole numbers, got 1.9
    """
    numbers = as_tensor(argument, values, "whole numbers")
    if numbers.dtype == torch.bool or numbers.is_complex():
        raise ArgumentError(f"{argument} must be whole numbers, got {numbers.dtype}")
    whole = numbers.long()
    other = numbers[whole != numbers].reshape(-1)
    if len(other):
        raise ArgumentError(f"{argument} must be whole numbers, got {', '.join(map(str, other[:3].tolist()))}")
    return whole


def as_tensor(argument: str, values: object, constraint: str = "a tensor, or numbers that make one") -> Tensor:
    """Return a tensor as it is, and anything else that NumPy understands copied into one.

    Args:
        argument: Its name, for the message.
        values: A tensor, an array of any byte order, numbers.
        constraint: What it must be, for the message.

    Raises:
        ArgumentError: It is none of these, or has masked values.
    """
    if isinstance(values, Tensor):  # a subclass, such as MONAI's, may read torch's functions otherwise
        return values if type(values) is Tensor else values.as_subclass(Tensor)
    if np.ma.is_masked(values):
        raise ArgumentError(
            f"{argument} has masked values, which a tensor would show: fill them, as in array.filled(0)"
        )
    try:
        array = np.asarray(values)  # torch alone would round a list of 64 bit floats to 32
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ArgumentError(f"{argument} must be {constraint}, got {values!r:.80}") from error
