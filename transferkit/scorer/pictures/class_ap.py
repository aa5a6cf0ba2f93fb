"""AP of every class with its interval, best class first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from transferkit.errors import require
from transferkit.scorer.pictures.style import SMALL_TEXT, TEXT_SIZE, color, dress, new_figure
from transferkit.scorer.result import ClassificationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_class_ap(result: ClassificationResult) -> Figure:
    """Draw the AP of each class as a point, its interval as a bar, and the mean of all as a dashed line.

    Args:
        result: What :func:`evaluate` returned.

    Raises:
        ArgumentError: No class has an AP.
        MissingExtraError: matplotlib is not installed.
    """
    ap = result.ap[result.rule]
    order = sorted((c for c, value in enumerate(ap) if not math.isnan(value)), key=lambda c: ap[c])
    require(bool(order), "result", "one with positives in some class", "no class with an AP")
    figure = new_figure(5.2, 0.21 * len(order) + 0.9)
    axes = figure.subplots()
    for y, c in enumerate(order):
        if result.intervals:
            low, high = result.intervals[c].low, result.intervals[c].high
            axes.plot([100 * low, 100 * high], [y, y], color="0.6", linewidth=2.2, solid_capstyle="butt")
        axes.plot(100 * ap[c], y, "o", color=color(0), markersize=4.5, clip_on=False, zorder=3)
    mean = 100 * result.mean_ap()
    axes.axvline(mean, color=color(1), linestyle="--", linewidth=1)
    top = axes.get_xaxis_transform()  # x in AP, y as a share of the height
    axes.text(mean, 1.01, f"mean {mean:.1f}", transform=top, fontsize=SMALL_TEXT, ha="center", color=color(1))
    interval = f"; bar: {result.level:.0%} interval" if result.intervals else ""
    dress(axes, f"AP (%){interval}\n{result.rule}", "")
    axes.set_yticks(range(len(order)), [f"{result.class_names[c]} ({result.positives[c]})" for c in order])
    axes.set(xlim=(0, 100), ylim=(-0.7, len(order) + 0.1))
    axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE - 1)
    return figure
