"""Where the patches of a stream lie, how they become a minibatch, and what identifies their data."""

from __future__ import annotations

import hashlib
import inspect
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from transferkit.boxes import as_boxes, require_inside
from transferkit.errors import ArgumentError, DataError, StateError, TransferKitError, require
from transferkit.sampler.crop import Mode, crop_and_resize
from transferkit.sampler.grid import Grid, Proposals
from transferkit.sampler.regions import as_image, bits, cut_regions, size_of

_METHODS = {"image_size", "objects", "presence", "photo_file", "fingerprint", "patch_source"}


def teller_of(dataset: Any, index: int, name: str) -> tuple[Any, int] | None:
    """Return the data set with an attribute ``name`` that holds an image, and the image's place in it.

    Args:
        dataset: A data set, or a view of one, or a view of views.
        index: The image's place in ``dataset``.
        name: Such as ``"image_size"`` or ``"ids"``.

    Returns:
        ``None`` where neither ``dataset`` nor what it views has the attribute, in the form that it has here: one of
        that name that means something else, such as ``image_size = 512``, is left alone.

    Example:
        >>> class Named(list):
        ...     ids = ("a", "b", "c")
        >>> view = Subset(ConcatDataset([Named([0, 1, 2]), Named([3, 4, 5])]), [5, 0])
        >>> data, place = teller_of(view, 0, "ids")
        >>> data.ids[place]
        'c'
    """
    while not _tells(dataset, name):
        inner = within(dataset, index)
        if inner is None:
            return None
        dataset, index = inner
    return dataset, index


def _tells(dataset: Any, name: str) -> bool:
    value = getattr(dataset, name, None)
    if name not in ("ids", "class_names"):
        return callable(value) if name in _METHODS else value is not None
    if not isinstance(value, Sized) or isinstance(value, (str, bytes, Mapping)):
        return False
    return hasattr(value, "__getitem__") and (name == "class_names" or len(value) == len(dataset))


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
    if _tells(dataset, name):
        return [(dataset, index) for index in range(len(dataset))]
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


_COMPARED = 20_000  # images; of more, as many that are spread evenly, so that it takes a second at most


def digest_of_data(dataset: Any) -> dict[str, str]:
    """Return digests of what a data set tells of its images without decoding: sizes, objects, sizes of files."""
    told: dict[str, list[object]] = {}
    for index in range(0, len(dataset), -(-len(dataset) // _COMPARED)):
        for name, plain in _TOLD.items():
            if teller := teller_of(dataset, index, name):
                try:
                    value = plain(getattr(teller[0], name)(teller[1]))
                except (TransferKitError, OSError) as error:
                    value = type(error).__name__
                told.setdefault(f"{name} of images", []).append(value)
    owner = teller_of(dataset, 0, "patch_source")
    cached = {} if owner is None else {"features": str(getattr(owner[0], "key", ""))}
    return {**{name: _digest(values) for name, values in told.items()}, **cached}


_TOLD: dict[str, Callable[[Any], object]] = {
    "image_size": tuple,
    "objects": lambda found: [part if part is None else torch.as_tensor(part).tolist() for part in found],
    "photo_file": lambda found: Path(found[0]).stat().st_size,
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
        if saved.get(name) != value  # what an earlier version did not know of is None
    ]
    if different:
        raise StateError(
            "the sampler's state belongs to other data or settings, and its patches would be others:\n"
            + "\n".join(different)
        )


# What a stream of patches is made of: where an image's patches lie, and how the chosen ones become a minibatch.


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function with as many of the arguments as it asks for, and one at least.

    Example:
        >>> call(lambda item: item, 1, 2), call(lambda item, draws: draws, 1, 2), call(lambda item, n=5: n, 1, 2)
        (1, 2, 5)
    """
    return function(*arguments[: max(1, asked_for(function))])


def asked_for(function: Callable[..., Any]) -> int:
    """Return how many arguments a function must be given by position; one named ``generator`` counts in any case."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtin functions have none
        return 1
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = (each for each in parameters if each.default is each.empty or each.name == "generator")
    return sum(each.kind in by_place for each in wanted)


class PatchSource(Protocol):
    """Lays an image's patches, and makes minibatches of those that were chosen.

    A data set with a method ``patch_source(pixels: PixelSource) -> PatchSource`` is asked for its own; what it cannot
    give as ``pixels`` says, it refuses.
    """

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch."""
        ...

    def patches(self, item: Any, generator: torch.Generator | None = None) -> Tensor:
        """Return all patches of an annotated image, (P, 4) float64 xyxy, in its pixels.

        Args:
            item: The annotated image.
            generator: Of (seed, epoch, image), for patches that lie at random; may be left out of the method.
        """
        ...

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,), or ``None`` if only looking at it tells."""
        ...

    def content(self, item: Any, rows: Tensor, boxes: Tensor) -> Tensor:
        """Return what the chosen ``rows`` of an image's patches, (B,), can be made from; workers call it.

        ``boxes``, (B, 4), are those patches; they may be left out of the method.
        """
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
    """Patches of a grid and of proposals, cut from images or from further maps of them.

    Attributes:
        grid: Lays patches by the image's size; ``None`` for none.
        proposals: Gives patches, or more patches; ``None`` for none.
        patch_size: S.
        antialias: See :func:`crop_and_resize`.
        whole_pixels: See :func:`crop_and_resize`.
        dtype: Of the pixels; ``None`` for the image's own.
        fill: Of what lies outside the image; ``None`` where no patch may.
        attribute: Of the item: the ``image``, or a map of its size.
        mode: ``"bilinear"`` or ``"nearest"``.
    """

    grid: Grid | None
    proposals: Proposals | Callable[[Any], Tensor] | None
    patch_size: int
    antialias: bool
    whole_pixels: bool
    dtype: torch.dtype | None
    fill: float | None = None
    attribute: str = "image"
    mode: Mode = "bilinear"

    def __post_init__(self) -> None:
        grid, proposals = self.grid, self.proposals
        require(grid is None or callable(grid), "grid", "called with (height, width), or None", grid)
        require(
            proposals is None or callable(proposals), "proposals", "called with an item, or None", proposals
        )
        require(self.mode in ("bilinear", "nearest"), "maps", "'bilinear' or 'nearest' by name", self.mode)

    @property
    def always_some(self) -> bool:
        """Whether every image has a patch: a grid is taken to lay one, and an image without is passed over."""
        return self.grid is not None

    def patches(self, item: Any, generator: torch.Generator | None = None) -> Tensor:
        """Return all patches of an annotated image, (P, 4) float64, those of the grid before the proposals."""
        if not hasattr(item, "image"):
            raise DataError(f"a data set's items must have an image, this {type(item).__name__} has none")
        size = size_of(as_image(item, "image"))
        parts = []
        if self.grid is not None:
            parts.append(as_boxes(torch.as_tensor(self.grid(size)), "patches of the grid").double().cpu())
        if self.proposals is not None:
            if generator is None and asked_for(self.proposals) > 1:
                raise ArgumentError(
                    "proposals that take a generator lie elsewhere each epoch: they cannot be kept"
                )
            proposed = call(self.proposals, item, generator)
            parts.append(as_boxes(torch.as_tensor(proposed), "proposals").double().cpu())
        boxes = torch.cat(parts)
        if self.fill is None:
            require_inside(boxes, size)
        return boxes

    def available(self, dataset: Any) -> Iterable[int] | None:
        """Return how many patches each image has, (N,), where its size tells, which the data set knows."""
        tellers = tellers_of(dataset, "image_size")
        if self.grid is None or self.proposals is not None or tellers is None:
            return None
        return (self._count(_told_size(data, place)) for data, place in tellers)

    def _count(self, size: tuple[int, int]) -> int:
        """Return how many patches the grid lays on images of a size, of which there are fewer than images."""
        known: dict[tuple[int, int], int] = self.__dict__.setdefault("_counted", {})
        if size not in known:
            grid: Any = self.grid
            known[size] = grid.count(size) if hasattr(grid, "count") else len(grid(size))
        return known[size]

    def content(self, item: Any, rows: Tensor, boxes: Tensor) -> Tensor:
        """Return an image in memory whole, (C, H, W); of one that is read by region the patches, (B, C, S, S)."""
        image = as_image(item, self.attribute)
        whole = size_of(as_image(item, "image"))
        if size_of(image) != whole:
            raise DataError(f"{self.attribute} must be of the image's size {whole}, got {size_of(image)}")
        if isinstance(image, Tensor):
            return image
        return cut_regions(image, boxes, self.patch_size, self._cut)

    def make(self, content: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Cut patches, (n, C, S, S), or take those that are cut already."""
        if content.ndim == 3:
            return self._cut(content, boxes[rows])
        return bits(content)[rows.to(content.device)].view(content.dtype)

    def blank(self, count: int, device: torch.device) -> Tensor:
        """Return black patches, (count, 3, S, S)."""
        shape = (count, 3, self.patch_size, self.patch_size)
        return torch.zeros(shape, dtype=self.dtype or torch.uint8, device=device)

    def _cut(self, image: Tensor, boxes: Tensor) -> Tensor:
        return crop_and_resize(
            image,
            boxes,
            self.patch_size,
            antialias=self.antialias,
            whole_pixels=self.whole_pixels,
            mode=self.mode,
            fill=self.fill,
            dtype=self.dtype,
        )


def _told_size(data: Any, place: int) -> tuple[int, int]:
    """Return what a data set tells of an image's size."""
    size = data.image_size(place)
    if not isinstance(size, Sequence) or len(size) != 2:
        raise DataError(f"image_size({place}) must return (height, width), got {size!r}")
    return size[0], size[1]


def require_photo(item: Any) -> None:
    """Raise unless an item's image is RGB bytes, which networks take."""
    image = item.image
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        found = f"{tuple(image.shape)} {image.dtype}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"image must be a (3, H, W) uint8 tensor, got {found}")
