"""Photos: contact sheets, maps, and what the sampler sees."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.localization import map_peak
from transferkit.scorer.pictures.style import (
    SMALL_TEXT,
    TEXT_SIZE,
    as_text,
    bare,
    color,
    draw_boxes,
    grid_of,
    new_figure,
    outline_boxes,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


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
        line[0].set_ylabel(as_text(name), fontsize=TEXT_SIZE, labelpad=6)
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


# A photo, and beside it where each class is seen.

_MAP_COLORS = "magma"  # its lightness rises evenly, so it reads the same in gray


def plot_maps(
    image: Tensor,
    maps: Mapping[str, Tensor],
    *,
    objects: Mapping[str, Tensor] | None = None,
    caption: str = "",
) -> Figure:
    """Draw the photo with its objects, then one map per class, each from 0 to its own maximum.

    A cross marks the maximum; the objects of the class are outlined on its map.

    Args:
        image: (3, H, W) uint8.
        maps: Per class, (H, W) scores not below 0; see :func:`score_map`.
        objects: Per class, (N, 4) xyxy boxes in pixels.
        caption: Below the photo.

    Raises:
        ArgumentError: No map, or one that is not of the photo's size.
        MissingExtraError: matplotlib is not installed.
    """
    size = tuple(image.shape[-2:])
    wrong = {name: tuple(values.shape) for name, values in maps.items() if tuple(values.shape) != size}
    require(bool(maps) and not wrong, "maps", f"one or more of the photo's size {size}", wrong)
    objects = objects or {}
    panel = 1.9
    figure = new_figure(panel * (1 + len(maps)) + 0.6, panel * size[0] / size[1] + 0.3)
    photo, *panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
    show_image(photo, image, caption)
    for boxes in objects.values():
        outline_boxes(photo, boxes, width=0.8)

    gray = (image.float().mean(dim=0) / 255).clamp(0, 1)
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        top = float(values.max())
        show_image(axes, (255 * gray).byte(), f"{name}, maximum {top:.2g}")
        relative = (values / top if top > 0 else values).cpu().numpy()
        extent = (0, size[1], size[0], 0)
        drawn = axes.imshow(relative, cmap=_MAP_COLORS, vmin=0, vmax=1, alpha=0.75, extent=extent)
        if name in objects:
            draw_boxes(axes, objects[name], edgecolor="white", linewidth=1.0, linestyle="--")
        x, y = map_peak(values)
        axes.plot(x, y, "x", color="black", markersize=8, markeredgewidth=3)
        axes.plot(x, y, "x", color="white", markersize=7, markeredgewidth=1.4)
        axes.set(xlim=(0, size[1]), ylim=(size[0], 0))
    bar = figure.colorbar(drawn, cax=panels[-1].inset_axes((1.03, 0, 0.04, 1)), ticks=(0, 0.5, 1))
    bar.set_label("score / maximum", fontsize=SMALL_TEXT)
    bar.ax.tick_params(labelsize=SMALL_TEXT)
    return figure


# What the sampler sees: the patches of one photo, their labels, and what the network is given.

_DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (5, 1.2, 1, 1.2)))


def plot_patches(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str],
    crops: Tensor | None = None,
    objects: Tensor | None = None,
    background: int = 12,
    per_class: int = 6,
    columns: int = 4,
) -> Figure:
    """Draw the photo with the outlines of its patches, and beside it the crops.

    Patches of a class are drawn in its color and dash, the background's thin and gray, objects in white; of many,
    some, and the legend tells how many there are.

    Args:
        image: (3, H, W) uint8.
        boxes: (P, 4) xyxy, pixels.
        labels: (P,) integers; 0 is background, negative is ignored and not drawn.
        class_names: K names.
        crops: (P, 3, S, S) uint8, what the network is given; some are shown, objects before background.
        objects: (N, 4) xyxy, pixels.
        background: How many background patches to draw, evenly spaced through the list.
        per_class: How many patches of each class to draw.
        columns: Crops in a row.

    Raises:
        ArgumentError: One label (and crop) per patch is not given.
        MissingExtraError: matplotlib is not installed.
    """
    require(boxes.shape == (len(labels), 4), "boxes", f"({len(labels)}, 4), one per label", tuple(boxes.shape))
    require(crops is None or len(crops) == len(labels), "crops", f"one for each of {len(labels)} labels", crops)
    figure = new_figure(3.4 if crops is None else 7.2, 3.4)
    if crops is None:
        axes = figure.subplots()
    else:
        left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1), squeeze=False)[0]
        axes = left.subplots()
        _draw_crops(right, crops, labels, class_names, columns)
    show_image(axes, image)
    if objects is not None:
        outline_boxes(axes, objects)
    plain = (labels == 0).nonzero()[:, 0]
    draw_boxes(axes, boxes[_some(plain, background)], edgecolor="0.75", linewidth=0.6)
    classes = sorted({int(label) for label in labels.tolist() if label > 0})
    for index, k in enumerate(classes):
        look = {"edgecolor": color(index + 1), "linestyle": _DASHES[index % len(_DASHES)], "linewidth": 1.3}
        shown = boxes[_some((labels == k).nonzero()[:, 0], per_class)]
        draw_boxes(axes, shown, edgecolor="white", linewidth=2.4, alpha=0.7)
        draw_boxes(axes, shown, **look)
        label = as_text(f"{class_names[k]} ({int((labels == k).sum())})")
        axes.plot([], [], color=look["edgecolor"], linestyle=look["linestyle"], label=label)
    axes.plot([], [], color="0.75", linewidth=0.8, label=f"background ({len(plain)})")
    height, width = image.shape[-2:]
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=SMALL_TEXT, frameon=False)
    return figure


def _some(rows: Tensor, count: int) -> Tensor:
    """Return at most ``count`` of the rows, evenly spaced."""
    return rows[:: max(1, math.ceil(len(rows) / max(1, count)))][:count]


def _draw_crops(
    figure: SubFigure, crops: Tensor, labels: Tensor, class_names: Sequence[str], columns: int
) -> None:
    """Draw a square grid of crops, those of objects first, each under its label."""
    positives, negatives = (labels > 0).nonzero()[:, 0].tolist(), (labels == 0).nonzero()[:, 0].tolist()
    room = columns * columns
    # At least a third is background, so that the picture tells the two apart.
    kept = positives[:: max(1, math.ceil(len(positives) / (room - room // 3)))][: room - room // 3]
    spare = room - len(kept)
    kept = [*kept, *negatives[:: max(1, len(negatives) // spare)][:spare]]
    rows, columns = grid_of(len(kept), columns)
    for axes, p in zip(figure.subplots(rows, columns, squeeze=False).ravel(), kept, strict=False):
        show_image(axes, crops[p], textwrap.fill(class_names[int(labels[p])], 13))
    for axes in figure.axes[len(kept) :]:
        bare(axes)
