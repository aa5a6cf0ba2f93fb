"""How the exponent of the score decides the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from transferkit.errors import require
from transferkit.scorer.pictures.style import SMALL_TEXT, TEXT_SIZE, dress, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        axes.plot([place[e] for e, _ in values], [100 * v for _, v in values], label=name, **line_style(index))
    best, value = max(next(iter(mean_ap.values())).items(), key=lambda item: item[1])
    axes.annotate(
        f"{100 * value:.1f}", (place[best], 100 * value), xytext=(0, 6), textcoords="offset points",
        ha="center", fontsize=SMALL_TEXT,
    )  # fmt: skip
    for index, (name, level) in enumerate(references, start=len(mean_ap)):
        look = {key: line_style(index)[key] for key in ("color", "linestyle")}
        axes.axhline(100 * level, linewidth=1, label=f"{name}: {100 * level:.1f}", **look)
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
