"""What a stream of patches is made of: where an image's patches lie, and how the chosen ones become a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from transferkit.boxes import as_boxes
from transferkit.errors import DataError, require
from transferkit.sampler.crop import crop_and_resize
from transferkit.sampler.grid import PatchGrid
from transferkit.sampler.views import tellers_of

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
        sizes = (data.image_size(place) for data, place in tellers)
        return (grid.count((height, width)) for height, width in sizes)

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
