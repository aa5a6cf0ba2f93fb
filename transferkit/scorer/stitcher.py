"""Maps that a network gives of overlapping patches, put together to one of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transferkit.annotated import as_tensor
from transferkit.boxes import as_boxes, as_size
from transferkit.errors import ArgumentError, StateError, require

Window = Literal["flat", "hann", "gaussian"]

# Along a side from 0 to 1, and at the centers of pixels nowhere 0.
_WINDOWS: dict[Window, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "flat": np.ones_like,
    "hann": lambda place: np.sin(np.pi * place) ** 2,
    "gaussian": lambda place: np.exp(-0.5 * ((place - 0.5) / 0.125) ** 2),
}


class Stitcher:
    """Put maps of overlapping patches together to one of the image, such as a segmentation of its tiles.

    A pixel is the mean over all patches that show it, each weighted by a window. The mean is kept running, in
    float64: where patches agree, it is what they agree on, bit for bit (but for the sign of a 0).

    Args:
        channels: C.
        image_size: ``(height, width)`` of the whole, in pixels of the maps.
        window: ``"flat"``; or, for patches that know less about their rims, ``"hann"``, or ``"gaussian"`` with a
            standard deviation of an eighth of the side.
        state: Where to keep means and weights, (C + 1, H, W) float64, all 0: an array that is indexed like NumPy's (a
            memory map, zarr), for an image too large for memory; ``None`` for memory.

    Example:
        >>> maps, boxes = torch.tensor([[[[1.0, 2.0]]], [[[4.0, 8.0]]]]), torch.tensor([[0, 0, 2, 1], [1, 0, 3, 1]])
        >>> Stitcher(1, (1, 3)).add(maps, boxes).compute()
        tensor([[[1., 3., 8.]]])
    """

    def __init__(
        self, channels: int, image_size: tuple[int, int], window: Window = "flat", *, state: Any = None
    ) -> None:
        require(window in _WINDOWS, "window", f"one of {tuple(_WINDOWS)}", window)
        require(channels >= 1, "channels", "1 or more", channels)
        self.channels, self.image_size, self.window = channels, as_size("image_size", image_size), window
        shape = (channels + 1, *self.image_size)
        self._state = np.zeros(shape) if state is None else state
        found = (tuple(self._state.shape), np.dtype(self._state.dtype).name)
        require(found == (shape, "float64"), "state", f"{shape} float64", found)
        self._dtype: torch.dtype | None = None

    def add(self, maps: Tensor, boxes: Tensor) -> Stitcher:
        """Take in maps of patches.

        Args:
            maps: (P, C, h, w), floats or integers up to 32 bits, of the same dtype every time, on any device.
            boxes: (P, 4) xyxy, whole pixels, each of ``(h, w)``; what leaves the image is left out.

        Returns:
            This stitcher.

        Raises:
            ArgumentError: Maps or boxes other than these; nothing was taken in.
        """
        maps, boxes = as_tensor("maps", maps).detach(), as_boxes(boxes).double().cpu()
        self._check(maps, boxes)
        self._dtype = maps.dtype
        window = np.outer(*(_WINDOWS[self.window]((np.arange(n) + 0.5) / n) for n in maps.shape[2:]))
        for values, box in zip(maps.cpu(), boxes.long().tolist(), strict=True):
            self._blend(values.double().numpy(), window, box)
        return self

    def _check(self, maps: Tensor, boxes: Tensor) -> None:
        shape, kind = tuple(maps.shape), maps.dtype
        fits = len(shape) == 4 and shape[:2] == (len(boxes), self.channels) and min(shape[2:]) >= 1
        require(fits, "maps", f"({len(boxes)}, {self.channels}, h, w), one per box", shape)
        unfit = kind == torch.bool or (kind.itemsize > 4 and not kind.is_floating_point)
        if unfit or self._dtype not in (None, kind):
            wanted = self._dtype or "floats or integers up to 32 bits (of labels, a channel for each class)"
            raise ArgumentError(f"maps must be {wanted}, got {kind}")
        sides = boxes.new_tensor([shape[3], shape[2]])
        wrong = ((boxes[:, 2:] - boxes[:, :2] != sides) | (boxes[:, :2] % 1 != 0)).any(dim=1).nonzero()
        if len(wrong):
            raise ArgumentError(
                f"boxes must be whole pixels, {shape[3]} wide and {shape[2]} high as the maps are, got "
                f"{boxes[int(wrong[0])].tolist()} at row {int(wrong[0])}: resize the maps to their boxes, or divide "
                "boxes and image_size by the network's stride"
            )

    def _blend(self, values: NDArray[np.float64], window: NDArray[np.float64], box: list[int]) -> None:
        """Move the means under one map, (C, h, w), towards it."""
        (height, width), (x0, y0, x1, y1) = self.image_size, box
        top, bottom, left, right = max(y0, 0), min(y1, height), max(x0, 0), min(x1, width)
        if top >= bottom or left >= right:
            return
        seen = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
        region = (slice(None), slice(top, bottom), slice(left, right))
        state, new = np.array(self._state[region]), values[(slice(None), *seen)]
        mean, weight = state[:-1], state[-1]
        weight += window[seen]
        kept = np.isinf(mean) & ((mean == new) | np.isfinite(new))  # infinity - infinity would be NaN
        with np.errstate(invalid="ignore", over="ignore"):
            np.add(mean, (new - mean) * (window[seen] / weight), out=mean, where=~kept)
        self._state[region] = state

    def compute(self, fill: float | None = None, out: Any = None) -> Any:
        """Return the whole map.

        Args:
            fill: The value of pixels that no patch showed, one that the result's dtype has; ``None`` refuses them.
            out: (C, H, W), filled and returned, row by row: a tensor, or an array that is indexed like NumPy's.

        Returns:
            ``out``, or a tensor of the maps' dtype on the cpu. Where it is of integers, means are rounded.

        Raises:
            ArgumentError: A ``fill`` or an ``out`` that does not fit.
            StateError: There are pixels that no patch showed, and no ``fill``.
        """
        height, width = self.image_size
        shape, at_once = (self.channels, height, width), max(1, 2**22 // width)  # rows
        blocks = [slice(first, min(first + at_once, height)) for first in range(0, height, at_once)]
        blank = sum(int((self._state[self.channels, rows] == 0).sum()) for rows in blocks)
        if blank and fill is None:
            raise StateError(f"{blank:,} pixels lie in no patch: add patches that show them, or give fill=")
        out = torch.empty(shape, dtype=self._dtype or torch.float64) if out is None else out
        require(tuple(out.shape) == shape, "out", f"of shape {shape}", tuple(out.shape))
        kind = str(out.dtype).removeprefix("torch.")
        floating = "float" in kind
        held = floating or fill is None or (np.iinfo(kind).min <= fill <= np.iinfo(kind).max and fill % 1 == 0)
        require(held, "fill", f"a value of {kind}", fill)
        for rows in blocks:
            for channel in range(self.channels):
                means = np.where(self._state[self.channels, rows] == 0, fill or 0, self._state[channel, rows])
                means = means if floating else np.floor(means + 0.5)
                out[channel, rows] = torch.from_numpy(means) if isinstance(out, Tensor) else means
        return out
