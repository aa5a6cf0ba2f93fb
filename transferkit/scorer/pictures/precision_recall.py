"""Precision against recall, one small panel per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from transferkit.errors import require
from transferkit.scorer.ap_rule import VOC2010, APRule
from transferkit.scorer.average_precision import ranking_ap
from transferkit.scorer.pictures.style import SMALL_TEXT, TEXT_SIZE, color, dress, grid_of, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DASH = (0, (3, 1.5))


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
        targets: (N, K) bool.
        difficult: (N, K) bool, or ``None`` for nowhere.
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
        panel.text(0.02, 1.03, class_names[k], transform=panel.transAxes, fontsize=SMALL_TEXT)
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
