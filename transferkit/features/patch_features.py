"""A backbone's output for boxes on an image: patch by patch, or read from a few maps of the whole image."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from transferkit.backbones.geometry import probe_geometry
from transferkit.backbones.split import split_pooling
from transferkit.boxes import as_boxes, require_inside
from transferkit.deprecation import renamed_argument
from transferkit.errors import UnsharableError, require
from transferkit.features.shared import (
    Forward,
    PyramidScales,
    Resizing,
    Shared,
    check_pyramid_scales,
    device_of,
)
from transferkit.preprocessing import IMAGENET, Preprocessing

Method = Literal["exact", "shared", "auto"]


class PatchFeatures:
    """Features of patches, ``features(image, boxes) -> (P, *shape)``, the same shape whatever the method.

    ``"exact"`` cuts each patch, resizes it to S x S and runs the backbone on it, as a network that is given
    patches does. ``"shared"`` resizes the whole image instead, once for each size of patch or for a few
    ``pyramid_scales``, runs the backbone once on each, and reads every patch's cells from the map bilinearly, at the
    places where they would lie (see :func:`map_coordinates`). Overlapping patches then cost almost nothing. The
    features differ: at its border a patch sees the image around it where the exact way has padding, and cells
    lie between cells. ``"auto"`` is shared where the backbone can be, else exact with a warning; ``method`` and
    ``why_exact`` tell.

    Args:
        backbone: Maps normalized pixels (B, 3, H, W) to (B, C, h, w); for ``"exact"`` to anything. Put into
            evaluation mode while it runs. Its parameters are used as they are, so what trains or loads them is
            seen.
        pool: What is done to the map of each patch, (B, C, n, n) to (B, *shape): the last pooling, flattening,
            frozen fully connected layers. By default the poolings at the end of a sequential backbone
            (:func:`split_pooling`); give ``nn.Identity()`` for none.
        method: ``"exact"``, ``"shared"`` or ``"auto"``.
        pyramid_scales: For shared: ``None`` for one for each size of patch; a number, spread geometrically over the
            patches' sizes; or scales as a :class:`PatchGrid` has them.
        preprocessing: Preprocessing that the backbone expects.
        patch_size: S.
        antialias: See :func:`crop_and_resize`.
        whole_pixels: See :func:`crop_and_resize`; for shared, boxes are truncated to whole pixels.
        dtype: Of resized pixels, as in :class:`MultiscaleSampler`: by default rounded to uint8.
        batch_size: How many patches go through the backbone, or are read, at a time.
        most_pixels: The largest image that the backbone is shown; patches so small that they want a larger one are
            read from that. Bounds the memory.
        amp: Half precision (bfloat16): twice to three times faster where the device has it, cpus included;
            ``None`` for on with cuda and off elsewhere.
        device: Where backbone and pool are and features come out; by default where their first parameter is.

    Attributes:
        forward: Backbone, pool and how they are run.
        resizing: How patches are cut.
        method: ``"exact"`` or ``"shared"``.
        why_exact: Why ``"auto"`` became exact, else ``None``.

    Raises:
        UnsharableError: ``method="shared"`` for a backbone that cannot be; says why.

    Example:
        >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        >>> image = torch.zeros(3, 40, 60, dtype=torch.uint8)
        >>> boxes = torch.tensor([[0.0, 0, 20, 20], [30, 10, 60, 40]])
        >>> for method in ("exact", "shared"):
        ...     print(PatchFeatures(backbone, method=method, patch_size=32)(image, boxes).shape)
        torch.Size([2, 8, 1, 1])
        torch.Size([2, 8, 1, 1])

    References:
        He et al., "Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", ECCV 2014;
        Girshick, "Fast R-CNN", ICCV 2015; He et al., "Mask R-CNN", ICCV 2017, section 3 (reading between
        cells).
    """

    @renamed_argument("trunk", "backbone", until="0.2")
    @renamed_argument("levels", "pyramid_scales", until="0.2")
    def __init__(
        self,
        backbone: nn.Module,
        *,
        pool: nn.Module | None = None,
        method: Method = "exact",
        pyramid_scales: PyramidScales = None,
        preprocessing: Preprocessing = IMAGENET,
        patch_size: int = 224,
        antialias: bool = True,
        whole_pixels: bool = False,
        dtype: torch.dtype = torch.uint8,
        batch_size: int = 64,
        most_pixels: int = 2**22,
        amp: bool | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        require(method in ("exact", "shared", "auto"), "method", "'exact', 'shared' or 'auto'", method)
        require(patch_size >= 1, "patch_size", "1 or more", patch_size)
        require(batch_size >= 1, "batch_size", "1 or more", batch_size)
        require(
            most_pixels >= patch_size**2, "most_pixels", f"patch_size^2 = {patch_size**2} or more", most_pixels
        )
        check_pyramid_scales(pyramid_scales)
        backbone, pool = split_pooling(backbone) if pool is None else (backbone, pool)
        where = torch.device(device) if device is not None else device_of(backbone, pool)
        self.forward = Forward(backbone, pool, preprocessing, amp, where)
        self.resizing = Resizing(patch_size, antialias, whole_pixels, dtype)
        self.batch_size = batch_size
        self.pyramid_scales, self.most_pixels = pyramid_scales, most_pixels
        self.why_exact: str | None = None
        self._sharing = None if method == "exact" else self._share(required=method == "shared")
        self.method: Literal["exact", "shared"] = "exact" if self._sharing is None else "shared"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one patch's features, without their number."""
        with self.forward.evaluating():
            return tuple(self.forward.features(self._blank()).shape[1:])

    @property
    def frozen(self) -> bool:
        """Whether no parameter of backbone and pool takes a gradient, so that features stay as they are."""
        parts = (self.forward.backbone, self.forward.pool)
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def __call__(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return the features of an image's patches.

        Args:
            image: (3, H, W) uint8, RGB, on any device.
            boxes: (P, 4) xyxy, pixels, inside the image.

        Returns:
            (P, *shape) float32, on the backbone's device.

        Raises:
            ArgumentError: A box that leaves the image.
        """
        boxes = as_boxes(boxes).double().cpu()
        require_inside(boxes, (image.shape[1], image.shape[2]))  # a map would be read beyond its edge
        image = image.to(self.forward.device)
        out = torch.empty(len(boxes), *self.shape, device=self.forward.device)
        with self.forward.evaluating():
            for rows, features in self._parts(image, boxes) if len(boxes) else ():
                out[rows.to(out.device)] = features
        return out

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """Return the exact features, (B, *shape) float32, of patches cut already, (B, 3, S, S) in 0..255."""
        with self.forward.evaluating():
            return self.forward.features(pixels)

    def _parts(self, image: Tensor, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield rows of ``boxes`` and their features."""
        if self._sharing is not None:
            yield from self._sharing(self.forward, self.resizing, image, boxes, self.batch_size)
            return
        # Minibatches as equal as can be, so that none is far smaller than the rest.
        for rows in torch.arange(len(boxes)).tensor_split(-(-len(boxes) // self.batch_size)):
            yield rows, self.forward.features(self.resizing.patches(image, boxes[rows]))

    def _share(self, *, required: bool) -> Shared | None:
        """Return how to share, or ``None`` if that is impossible."""
        backbone = self.forward.backbone
        try:
            geometry = probe_geometry(backbone, size=self.resizing.patch_size)
        except UnsharableError as error:
            self.why_exact = str(error)
            problem = f"{type(backbone).__name__} cannot be shared between patches: {error}"
            if required:
                raise UnsharableError(
                    f"{problem}; use method='exact', or 'auto', which shares where it can"
                ) from error
            warnings.warn(f"{problem}; so each patch goes through it alone", stacklevel=3)
            return None
        with self.forward.evaluating():
            rows, columns = self.forward.maps(self._blank()).shape[2:]
        return Shared(geometry, (rows, columns), self.pyramid_scales, self.most_pixels)

    def _blank(self) -> Tensor:
        side = self.resizing.patch_size
        return torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.forward.device)
