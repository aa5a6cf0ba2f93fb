"""Pictures of an evaluation, drawn with matplotlib (``pip install transferkit[plots]``).

Each function takes plain tensors or numbers and returns a ``matplotlib.figure.Figure`` that belongs to no
window and touches no global state; :func:`save_figure` writes it. Lines differ by dash and marker as well as by
color, so that every picture can be read in gray.
"""

from __future__ import annotations

from transferkit.scorer.pictures.curves import (
    plot_class_ap,
    plot_convergence,
    plot_exponents,
    plot_precision_recall,
    plot_reliability,
)
from transferkit.scorer.pictures.photos import plot_contact_sheet, plot_maps, plot_patches
from transferkit.scorer.pictures.style import require_matplotlib, save_figure

__all__ = [
    "plot_class_ap",
    "plot_contact_sheet",
    "plot_convergence",
    "plot_exponents",
    "plot_maps",
    "plot_patches",
    "plot_precision_recall",
    "plot_reliability",
    "require_matplotlib",
    "save_figure",
]
