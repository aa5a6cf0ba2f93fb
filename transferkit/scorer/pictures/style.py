"""What all pictures have in common: size, type, lines that can be told apart in gray, and how to save them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from transferkit.display import OKABE_ITO
from transferkit.errors import ArgumentError, MissingExtraError
from transferkit.files import faults_named, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT_SIZE = 9
SMALL_TEXT = 7.5

_COLORS = ("#000000", *OKABE_ITO[:5])  # dash and marker carry the same information in gray
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "x")


def require_matplotlib() -> None:
    """Raise ``MissingExtraError`` if pictures cannot be drawn here; for asking before the work rather than after."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install transferkit[plots]") from error


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` by ``height`` inches that no window and no pyplot knows of.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def as_text(text: str) -> str:
    """Return text as it is written: a dollar sign starts no formula, and an underscore hides no line of a legend."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def color(index: int) -> str:
    """Return the i-th color."""
    return _COLORS[index % len(_COLORS)]


def line_style(index: int) -> dict[str, Any]:
    """Return the look of the i-th line of a picture, told from the others by color, dash and marker."""
    return {
        "color": color(index),
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def dress(axes: Axes, x: str, y: str) -> None:
    """Label the axes, with units, and take away what carries no information."""
    axes.set_xlabel(as_text(x), fontsize=TEXT_SIZE)
    axes.set_ylabel(as_text(y), fontsize=TEXT_SIZE)
    axes.tick_params(labelsize=TEXT_SIZE - 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def show_image(axes: Axes, image: Tensor, caption: str = "") -> None:
    """Draw a photo in pixel coordinates, one pixel from i to i + 1, without ticks, its caption below.

    Args:
        axes: Where to.
        image: (3, H, W) or (H, W) uint8.
        caption: One or more lines.
    """
    if image.ndim == 3:
        image = image.permute(1, 2, 0)
    pixels = np.asarray(image.cpu())
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise ArgumentError(f"image must be (3, H, W) or (H, W) uint8, got {pixels.dtype} {tuple(image.shape)}")
    height, width = pixels.shape[:2]
    axes.imshow(
        pixels, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0), interpolation="antialiased"
    )
    bare(axes)
    axes.set_xlabel(as_text(caption), fontsize=SMALL_TEXT, labelpad=3)


def draw_boxes(axes: Axes, boxes: Tensor, **look: Any) -> None:
    """Draw xyxy boxes, in pixels, over a photo."""
    from matplotlib.patches import Rectangle

    for x0, y0, x1, y1 in boxes.tolist():
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, **look))


def outline_boxes(axes: Axes, boxes: Tensor, width: float = 1.4) -> None:
    """Draw boxes in white on black, which is seen on any photo; ``width`` of the white, in points."""
    draw_boxes(axes, boxes, edgecolor="black", linewidth=width + 1)
    draw_boxes(axes, boxes, edgecolor="white", linewidth=width)


def bare(axes: Axes) -> None:
    """Take away ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def grid_of(count: int, columns: int) -> tuple[int, int]:
    """Return rows and columns of a grid for ``count`` pictures, at most ``columns`` wide."""
    columns = max(1, min(count, columns))
    return math.ceil(count / columns), columns


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> Path:
    """Write a figure to ``path`` (png, svg or pdf by its suffix), making its folder; return the path."""
    path = Path(path)
    with faults_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix[1:] or None
    return write_atomically(path, lambda file: figure.savefig(file, dpi=dpi, format=form, facecolor="white"))
