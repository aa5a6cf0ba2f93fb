"""What the sampler sees: the patches of one photo, their labels, and what the network is given."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.pictures.style import (
    SMALL_TEXT,
    bare,
    color,
    draw_boxes,
    grid_of,
    new_figure,
    outline_boxes,
    show_image,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

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

    Patches of a class are drawn in its colour and dash, the background's thin and grey, objects in white; of many,
    some, and the legend tells how many there are.

    Args:
        image: (3, H, W) uint8.
        boxes: (P, 4) xyxy, pixels.
        labels: (P,) integers; 0 is background, negative is ignored and not drawn.
        class_names: K names.
        crops: (P, 3, S, S) uint8, what the network is given; some are shown, objects before background.
        objects: (N, 4) xyxy, pixels.
        background: How many background patches to draw, evenly spaced through the list.
        per_class: How many patches of each class to draw, likewise.
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
        label = f"{class_names[k]} ({int((labels == k).sum())})"
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
