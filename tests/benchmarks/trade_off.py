"""The picture of quality against time."""

from __future__ import annotations

import statistics
from pathlib import Path

from transferkit.scorer.pictures.style import TEXT_SIZE, dress, line_style, new_figure, save_figure


def plot(seconds: dict[str, list[float]], quality: dict[str, list[float]], path: Path) -> Path:
    """Draw a point for each way, with the range of its rounds across and of its seeds upward.

    Args:
        seconds: By way, per photo, one for each round.
        quality: By way, mean AP in percent, one for each seed.
        path: Where to.
    """
    figure = new_figure(5.6, 3.6)
    axes = figure.subplots()
    for place, (way, found) in enumerate(quality.items()):
        x, y = statistics.median(seconds[way]), statistics.median(found)
        look = {**line_style(place), "linestyle": "none", "markersize": 6}
        across = [[x - min(seconds[way])], [max(seconds[way]) - x]]
        upward = [[y - min(found)], [max(found) - y]]
        axes.errorbar(x, y, xerr=across, yerr=upward, label=way, elinewidth=0.8, capsize=2, **look)
    axes.set_xscale("log")
    dress(axes, "time per photo (s, logarithmic)", "mean AP (%)")
    axes.legend(fontsize=TEXT_SIZE - 1, frameon=False)
    return save_figure(figure, path)
