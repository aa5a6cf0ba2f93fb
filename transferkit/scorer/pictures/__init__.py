"""Pictures of an evaluation, drawn with matplotlib (``pip install transferkit[plots]``).

Each function takes plain tensors or numbers and returns a ``matplotlib.figure.Figure`` that belongs to no
window and touches no global state; :func:`save_figure` writes it. Lines differ by dash and marker as well as by
colour, so that every picture can be read in grey.
"""

from __future__ import annotations

from transferkit.scorer.pictures.class_ap import plot_class_ap
from transferkit.scorer.pictures.contact_sheet import plot_contact_sheet
from transferkit.scorer.pictures.convergence import plot_convergence
from transferkit.scorer.pictures.exponents import plot_exponents
from transferkit.scorer.pictures.maps import plot_maps
from transferkit.scorer.pictures.patches import plot_patches
from transferkit.scorer.pictures.precision_recall import plot_precision_recall
from transferkit.scorer.pictures.style import require_matplotlib, save_figure

__all__ = [
    "plot_class_ap",
    "plot_contact_sheet",
    "plot_convergence",
    "plot_exponents",
    "plot_maps",
    "plot_patches",
    "plot_precision_recall",
    "require_matplotlib",
    "save_figure",
]
