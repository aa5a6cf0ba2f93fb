"""The picture of quality against time."""

from __future__ import annotations

import statistics
from pathlib import Path

from tests.benchmarks.ways import HALF
from transferkit.scorer.pictures.style import TEXT_SIZE, dress, line_style, new_figure, save_figure


def plot(seconds: dict[str, list[float]], quality: dict[str, list[float]], path: Path) -> Path:
    """Draw a point for each way, with the range of its rounds across and of its seeds upward; hollow in half precision.

    Args:
        seconds: By way, per photo, one for each round.
        quality: By way, mean AP in percent, one for each seed.
        path: Where to.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(6.6, 3.4)
    axes = figure.subplots()
    looks = {way: line_style(place) for place, way in enumerate(way for way in quality if HALF not in way)}
    for way, found in quality.items():
        x, y = statistics.median(seconds[way]), statistics.median(found)
        look = {**looks[way.removesuffix(HALF)], "linestyle": "none", "markersize": 6}
        look |= {"markerfacecolor": "white"} if HALF in way else {}
        across = [[x - min(seconds[way])], [max(seconds[way]) - x]]
        upward = [[y - min(found)], [max(found) - y]]
        axes.errorbar(x, y, xerr=across, yerr=upward, label=way, elinewidth=0.8, capsize=2, **look)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    dress(axes, "time per photo (s, logarithmic)", "mean AP (%)")
    figure.legend(fontsize=TEXT_SIZE - 1, frameon=False, loc="outside right upper")
    return save_figure(figure, path)
