"""Curves: AP by class, convergence, exponents, precision against recall."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.ap_rules import VOC2010, APRule, ranking_ap
from transferkit.scorer.decisions import Reliability
from transferkit.scorer.pictures.style import (
    SMALL_TEXT,
    TEXT_SIZE,
    as_text,
    color,
    dress,
    grid_of,
    line_style,
    new_figure,
)
from transferkit.scorer.result import ClassificationResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASH = (0, (3, 1.5))


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
    axes.set_yticks(
        range(len(order)), [as_text(f"{result.class_names[c]} ({result.positives[c]})") for c in order]
    )
    axes.set(xlim=(0, 100), ylim=(-0.7, len(order) + 0.1))
    axes.tick_params(axis="y", length=0, labelsize=TEXT_SIZE - 1)
    return figure


# How training went, run against run: pretrained against from scratch.


def plot_convergence(
    loss: Mapping[str, Sequence[float]],
    mean_ap: Mapping[str, Mapping[int, float]] | None = None,
    *,
    rule: str = "",
) -> Figure:
    """Draw the training loss of several runs over the epochs and, where known, their mean AP beside it.

    Args:
        loss: Per run, the mean training loss of the epochs 1, 2, ... in nats per patch.
        mean_ap: Per run, the mean AP in 0..1 after the epochs at which it was measured (0 is before training).
        rule: Under which rule, for the axis label.

    Raises:
        ArgumentError: No run, or one without an epoch.
        MissingExtraError: matplotlib is not installed.
    """
    require(
        bool(loss) and all(map(len, loss.values())),
        "loss",
        "one or more runs of one or more epochs",
        dict(loss),
    )
    measured = {run: points for run, points in (mean_ap or {}).items() if points}
    figure = new_figure(7.0 if measured else 3.8, 2.8)
    columns = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]

    runs = list(dict.fromkeys((*loss, *measured)))
    for run, values in loss.items():
        columns[0].plot(range(1, len(values) + 1), values, label=as_text(run), **line_style(runs.index(run)))
    dress(columns[0], "epoch", "training loss (nats per patch)")
    columns[0].set_ylim(bottom=0)
    columns[0].legend(fontsize=TEXT_SIZE, frameon=False)

    for run, points in measured.items():
        epochs = sorted(points)
        values = [100 * points[epoch] for epoch in epochs]
        columns[1].plot(epochs, values, label=as_text(run), **line_style(runs.index(run)))
    if measured:
        dress(columns[1], "epoch", f"mean AP (%){', ' + rule if rule else ''}")
        columns[1].set_ylim(0, 100)
    for axes in columns:
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


# How the exponent of the score decides the result.


def plot_exponents(
    mean_ap: Mapping[str, Mapping[float, float]],
    *,
    rule: str = "",
    references: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw the mean AP against the exponent, one line for each way of scoring, exponents evenly spaced.

    Args:
        mean_ap: Per line (``"sum"``, ``"mean"``), the mean AP in 0..1 by exponent; ``math.inf`` is the maximum.
        rule: Under which rule, for the axis label.
        references: Name and mean AP of other ways to score, as level lines.

    Raises:
        ArgumentError: No line, or one without points.
        MissingExtraError: matplotlib is not installed.
    """
    given = bool(mean_ap) and all(map(len, mean_ap.values()))
    require(given, "mean_ap", "one or more lines of one or more exponents", dict(mean_ap))
    exponents = sorted({exponent for line in mean_ap.values() for exponent in line})
    place = {exponent: x for x, exponent in enumerate(exponents)}
    figure = new_figure(5.0, 3.0)
    axes = figure.subplots()
    for index, (name, line) in enumerate(mean_ap.items()):
        values = sorted(line.items())
        axes.plot(
            [place[e] for e, _ in values],
            [100 * v for _, v in values],
            label=as_text(name),
            **line_style(index),
        )
    best, value = max(next(iter(mean_ap.values())).items(), key=lambda item: item[1])
    axes.annotate(
        f"{100 * value:.1f}", (place[best], 100 * value), xytext=(0, 6), textcoords="offset points",
        ha="center", fontsize=SMALL_TEXT,
    )  # fmt: skip
    for index, (name, level) in enumerate(references, start=len(mean_ap)):
        look = {key: line_style(index)[key] for key in ("color", "linestyle")}
        axes.axhline(100 * level, linewidth=1, label=as_text(f"{name}: {100 * level:.1f}"), **look)
    dress(
        axes,
        "exponent of the patch probability (∞: best patch alone)",
        f"mean AP (%){', ' + rule if rule else ''}",
    )
    axes.set_xticks(range(len(exponents)), ["∞" if math.isinf(e) else f"{e:g}" for e in exponents])
    axes.margins(y=0.18)
    if len(mean_ap) + len(references) > 1:
        axes.legend(fontsize=TEXT_SIZE - 1, frameon=False)
    return figure


def plot_reliability(curve: Reliability) -> Figure:
    """Draw how often probabilities of presence come true, one point for each bin with its number of photos.

    Args:
        curve: ``result.decisions.reliability``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(3.4, 3.2)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color="0.6", linestyle=_DASH, linewidth=0.8)
    bins = [row for row in zip(curve.expected, curve.present, curve.counts, strict=True) if row[2]]
    x, y = ([100 * row[place] for row in bins] for place in (0, 1))
    axes.plot(x, y, "o-", color=color(0), markersize=4, linewidth=1.3)
    for place, (_, _, count) in zip(zip(x, y, strict=True), bins, strict=True):
        axes.annotate(str(count), place, (0, 6), textcoords="offset points", fontsize=SMALL_TEXT, ha="center")
    dress(axes, "probability stated (%)", "class is there (%)")
    axes.set(xlim=(0, 100), ylim=(0, 108), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    return figure


# Precision against recall, one small panel per class.


def plot_precision_recall(
    scores: Tensor,
    targets: Tensor,
    difficult: Tensor | None = None,
    *,
    class_names: Sequence[str],
    rule: APRule = VOC2010,
    columns: int = 5,
) -> Figure:
    """Draw the precision at every recall and, dashed, what is read off it; the AP (%) stands above the panel.

    Classes without positives have no panel.

    Args:
        scores: (N, K).
        targets: (N, K) bool or 0 and 1.
        difficult: (N, K) bool or 0 and 1, or ``None`` for nowhere.
        class_names: K names.
        rule: Which AP; see :func:`evaluate`.
        columns: Panels in a row.

    Raises:
        ArgumentError: No class has positives, or shapes that do not fit.
        MissingExtraError: matplotlib is not installed.
    """
    difficult = torch.zeros_like(targets) if difficult is None else difficult
    ranking = rule.rank(scores.cpu(), targets.cpu(), difficult.cpu())
    ap = ranking_ap(ranking, rule.interpolation)
    shown = (ranking.positives > 0).nonzero()[:, 0].tolist()
    require(bool(shown), "targets", "true for at least one image and class", "no positives")

    rows, columns = grid_of(len(shown), columns)
    figure = new_figure(1.45 * columns + 0.7, 1.4 * rows + 0.5)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, k in zip(panels, shown, strict=False):
        counted = (ranking.right[:, k] + ranking.wrong[:, k]) > 0
        recall = _from_zero(100 * ranking.recall[counted, k], 0)
        precision = 100 * ranking.precision[counted, k]
        panel.plot(recall, _from_zero(precision, precision[0]), color=color(1), linewidth=1.3)
        if rule.interpolation != "none":
            envelope = 100 * ranking.envelope[counted, k]
            panel.plot(
                recall, _from_zero(envelope, envelope[0]), color=color(0), linewidth=0.8, linestyle=_DASH
            )
        dress(panel, "", "")
        panel.set(xlim=(0, 100), ylim=(0, 104), xticks=(0, 50, 100), yticks=(0, 50, 100))
        panel.text(0.02, 1.03, as_text(class_names[k]), transform=panel.transAxes, fontsize=SMALL_TEXT)
        panel.text(1, 1.03, f"{100 * ap[k]:.1f}", transform=panel.transAxes, fontsize=SMALL_TEXT, ha="right")
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    for panel in panels[len(shown) - columns : len(shown)]:  # the lowest of each column
        panel.tick_params(labelbottom=True)
    figure.supxlabel("recall (%)", fontsize=TEXT_SIZE)
    figure.supylabel("precision (%)", fontsize=TEXT_SIZE)
    return figure


def _from_zero(values: Tensor, start: Tensor | float) -> Tensor:
    """Return a curve with one point more, at recall 0."""
    return torch.cat([torch.as_tensor(start, dtype=values.dtype).reshape(1), values])
