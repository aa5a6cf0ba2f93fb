"""A plot of mean AP against a number, with its spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_curves(
    curves: Mapping[str, Mapping[int, Sequence[float]]], path: Path, *, xlabel: str, log: bool
) -> None:
    """Draw curves of mean AP: medians, and the range of the seeds.

    Args:
        curves: By name, at each place the mean AP of every seed, percent.
        path: Of the picture.
        xlabel: What the places are.
        log: Whether they are on a logarithmic axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        places, middle = list(curve), [statistics.median(found) for found in curve.values()]
        (line,) = axes.plot(places, middle, marker="o", label=name)
        low, high = ([of(found) for found in curve.values()] for of in (min, max))
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2)
    if log:
        axes.set_xscale("log")
    ticks = sorted({place for curve in curves.values() for place in curve})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel="mean AP, %")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
