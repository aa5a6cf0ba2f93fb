"""How training went, run against run: pretrained against from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transferkit.errors import require
from transferkit.scorer.pictures.style import TEXT_SIZE, dress, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        columns[0].plot(range(1, len(values) + 1), values, label=run, **line_style(runs.index(run)))
    dress(columns[0], "epoch", "training loss (nats per patch)")
    columns[0].set_ylim(bottom=0)
    columns[0].legend(fontsize=TEXT_SIZE, frameon=False)

    for run, points in measured.items():
        epochs = sorted(points)
        values = [100 * points[epoch] for epoch in epochs]
        columns[1].plot(epochs, values, label=run, **line_style(runs.index(run)))
    if measured:
        dress(columns[1], "epoch", f"mean AP (%){', ' + rule if rule else ''}")
        columns[1].set_ylim(0, 100)
    for axes in columns:
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
