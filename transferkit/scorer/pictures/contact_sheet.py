"""Photos side by side, in labelled rows: best hits, worst misses, false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.pictures.style import SMALL_TEXT, TEXT_SIZE, bare, new_figure, outline_boxes, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Photo = tuple[Tensor, str] | tuple[Tensor, str, Tensor]


def plot_contact_sheet(rows: Mapping[str, Sequence[Photo]], *, columns: int | None = None) -> Figure:
    """Draw photos in rows, each row under its name, each photo over its caption.

    Args:
        rows: Per row, photos as ``(image, caption)`` or ``(image, caption, boxes)``: (3, H, W) uint8, text, and
            (N, 4) xyxy boxes in pixels to outline. An empty row says "none".
        columns: Photos in a row; by default as many as the longest row has. Longer rows are cut.

    Raises:
        ArgumentError: No row at all.
        MissingExtraError: matplotlib is not installed.
    """
    require(bool(rows), "rows", "one or more rows of photos", dict(rows))
    columns = columns or max(1, *(len(photos) for photos in rows.values()))
    figure = new_figure(1.45 * columns + 0.3, 1.33 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for (name, photos), line in zip(rows.items(), grid, strict=True):
        for axes in line:
            bare(axes)
            axes.set(xlim=(0, 1), ylim=(0, 1), box_aspect=0.75)
        line[0].set_ylabel(name, fontsize=TEXT_SIZE, labelpad=6)
        if not photos:
            line[0].text(0.5, 0.5, "none", ha="center", va="center", fontsize=SMALL_TEXT, color="0.4")
        for axes, photo in zip(line, photos, strict=False):
            _draw(axes, *photo)
    return figure


def _draw(axes: Axes, image: Tensor, caption: str, boxes: Tensor | None = None) -> None:
    """Draw one photo in the middle of a panel of 4 by 3."""
    height, width = image.shape[-2:]
    side = max(width, height * 4 / 3)
    show_image(axes, image, caption)
    if boxes is not None:
        outline_boxes(axes, boxes, width=0.8)
    x, y = (width - side) / 2, (height - 0.75 * side) / 2
    axes.set(xlim=(x, x + side), ylim=(y + 0.75 * side, y), box_aspect=0.75)
