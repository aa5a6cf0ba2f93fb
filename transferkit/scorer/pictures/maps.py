"""A photo, and beside it where each class is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.pictures.style import SMALL_TEXT, draw_boxes, new_figure, outline_boxes, show_image
from transferkit.scorer.score_map import map_peak

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAP_COLORS = "magma"  # its lightness rises evenly, so it reads the same in grey


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

    grey = (image.float().mean(dim=0) / 255).clamp(0, 1)
    for axes, (name, values) in zip(panels, maps.items(), strict=True):
        top = float(values.max())
        show_image(axes, (255 * grey).byte(), f"{name}, maximum {top:.2g}")
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
