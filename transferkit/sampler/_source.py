"""Where the patches of a stream lie, how they become a minibatch, and what identifies their data."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from transferkit.boxes import as_boxes
from transferkit.errors import DataError, StateError, require
from transferkit.sampler.crop import crop_and_resize
from transferkit.sampler.grid import PatchGrid


def teller_of(dataset: Any, index: int, name: str) -> tuple[Any, int] | None:
    """Return the data set with an attribute ``name`` that holds an image, and the image's place in it.

    Args:
        dataset: A data set, or a view of one, or a view of views.
        index: The image's place in ``dataset``.
        name: Such as ``"image_size"`` or ``"ids"``.

    Returns:
        ``None`` where neither ``dataset`` nor what it views has the attribute.

    Example:
        >>> class Named(list):
        ...     ids = ("a", "b", "c")
        >>> view = Subset(ConcatDataset([Named([0, 1, 2]), Named([3, 4, 5])]), [5, 0])
        >>> data, place = teller_of(view, 0, "ids")
        >>> data.ids[place]
        'c'
    """
    while not hasattr(dataset, name):
        inner = within(dataset, index)
        if inner is None:
            return None
        dataset, index = inner
    return dataset, index


def within(dataset: Any, index: int) -> tuple[Any, int] | None:
    """Return what a view takes an image from, and the image's place there; ``None`` for what is no view."""
    if isinstance(dataset, Subset):
        return dataset.dataset, int(dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = bisect_right(dataset.cumulative_sizes, index)
        return dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0)
    if hasattr(dataset, "viewed"):  # image for image the same, such as features of them
        return dataset.viewed, index
    return None


def tellers_of(dataset: Any, name: str) -> list[tuple[Any, int]] | None:
    """Return :func:`teller_of` of every image; ``None`` if any has none."""
    found = [teller_of(dataset, index, name) for index in range(len(dataset))]
    tellers = [teller for teller in found if teller is not None]
    return tellers if len(tellers) == len(found) else None


# What a saved position in a stream belongs to: the data and every setting that decides its patches.


def described(value: object) -> str | int | float | bool | None:
    """Return a plain value that is the same in another process for an equal setting.

    Values print themselves; functions and objects that print only their address are known by their names.
    """
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    text = repr(value)
    if " at 0x" not in text:
        return text
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def describe_data(dataset: Any) -> dict[str, str | int | None]:
    """Return the number of images, and the digest of their ids and class names where the data set tells them."""
    named, classed = tellers_of(dataset, "ids"), tellers_of(dataset, "class_names")
    names = dict.fromkeys(tuple(data.class_names) for data, _ in classed or ())
    return {
        "images": len(dataset),
        "ids": _digest([data.ids[place] for data, place in named]) if named else None,
        "class_names": _digest([name for some in names for name in some]) if names else None,
    }


def _digest(values: Sequence[object]) -> str:
    joined = "\0".join(map(str, values))
    return hashlib.blake2b(joined.encode(), digest_size=8).hexdigest()


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise unless the saved data and settings are those of now.

    Raises:
        StateError: Naming each that differs.
    """
    different = [
        f"  {name}: {saved.get(name, 'unknown')!r} when it was saved, {value!r} now"
        for name, value in now.items()
        if name not in saved or saved[name] != value
    ]
    if different:
        raise StateError(
            "the sampler's state belongs to other data or settings, and its patches would be others:\n"
            + "\n".join(different)
        )


# What a stream of patches is made of: where an image's patches lie, and how the chosen ones become a minibatch.

Proposals = Callable[[Any], Tensor]
"""Takes an annotated image and returns (P, 4) boxes, xyxy, pixels."""


class PatchSource(Protocol):
    """Lays an image's patches, and makes minibatches of those that were chosen.

    A data set with a method ``patch_source(pixels: PixelSource) -> PatchSource`` is asked for its own; what it cannot
    give as ``pixels`` says, it refuses.
    """

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch."""
        ...

    def patches(self, item: Any) -> Tensor:
        """Return all patches of an annotated image, (P, 4) float64 xyxy, in its pixels."""
        ...

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,), or ``None`` if only looking at it tells."""
        ...

    def content(self, item: Any, rows: Tensor) -> Tensor:
        """Return what the chosen ``rows`` of an image's patches, (B,), can be made from; workers call it."""
        ...

    def make(self, content: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Return some of the chosen patches as a minibatch has them, (n, ...), on the device of ``content``.

        Args:
            content: What :meth:`content` returned.
            boxes: (B, 4) of all that were chosen.
            rows: (n,) which of them.
        """
        ...

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Return a minibatch of nothing."""
        ...


@dataclass(frozen=True)
class PixelSource:
    """Patches of a grid and of proposals, cut from decoded images.

    Attributes:
        grid: Lays patches by the image's size; ``None`` for none.
        proposals: Gives patches, or more patches; ``None`` for none.
        patch_size: S.
        antialias: See :func:`crop_and_resize`.
        whole_pixels: See :func:`crop_and_resize`.
        dtype: Of the pixels.
    """

    grid: PatchGrid | None
    proposals: Proposals | None
    patch_size: int
    antialias: bool
    whole_pixels: bool
    dtype: torch.dtype

    def __post_init__(self) -> None:
        proposals = self.proposals
        require(
            proposals is None or callable(proposals), "proposals", "called with an item, or None", proposals
        )

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch: a grid lays at least one."""
        return self.grid is not None

    def patches(self, item: Any) -> Tensor:
        """Return all patches of an annotated image, (P, 4) float64, those of the grid before the proposals."""
        check_item(item)
        height, width = item.image.shape[-2:]
        parts = []
        if self.grid is not None:
            parts.append(self.grid((height, width)))
        if self.proposals is not None:
            proposed = as_boxes(torch.as_tensor(self.proposals(item)), "proposals").double().cpu()
            if len(proposed) and (
                (proposed < 0).any() or (proposed.amax(0) > torch.tensor([width, height] * 2)).any()
            ):
                raise DataError(f"proposals must lie inside the image, {width} wide and {height} high")
            parts.append(proposed)
        return torch.cat(parts)

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,), where its size tells, which the data set knows."""
        tellers = tellers_of(dataset, "image_size")
        if self.grid is None or self.proposals is not None or tellers is None:
            return None
        grid = self.grid
        count = getattr(grid, "count", lambda size: len(grid(size)))  # a grid may be a function
        sizes = (data.image_size(place) for data, place in tellers)
        return (count((height, width)) for height, width in sizes)

    def content(self, item: Any, rows: Tensor) -> Tensor:
        """Return the image, (3, H, W) uint8, whichever patches were chosen."""
        image: Tensor = item.image
        return image

    def make(self, content: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Cut patches, (n, 3, S, S)."""
        return crop_and_resize(
            content,
            boxes[rows],
            self.patch_size,
            self.antialias,
            whole_pixels=self.whole_pixels,
            dtype=self.dtype,
        )

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Return black patches, (count, 3, S, S)."""
        return torch.zeros(count, 3, self.patch_size, self.patch_size, dtype=self.dtype, device=device)


def check_item(item: Any) -> None:
    """Raise unless ``item`` has the attributes and the kind of image that the sampler needs."""
    missing = [name for name in ("image", "boxes", "classes") if not hasattr(item, name)]
    if missing:
        raise DataError(
            f"a data set's items must have image, boxes and classes, this {type(item).__name__} has no "
            f"{' and no '.join(missing)}; an adapter in transferkit.datasets may help"
        )
    image = item.image
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"image must be a (3, H, W) uint8 tensor, got {found}")
    for name in ("boxes", "classes"):
        column = getattr(item, name)
        if not isinstance(column, Tensor):
            raise DataError(f"{name} must be a tensor, got {type(column).__name__}: wrap it in torch.as_tensor")
