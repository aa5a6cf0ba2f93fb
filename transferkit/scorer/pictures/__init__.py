"""Pictures of an evaluation, drawn with matplotlib (``pip install transferkit[plots]``).

Each function takes plain tensors or numbers and returns a ``matplotlib.figure.Figure`` that belongs to no
window and touches no global state; :func:`save_figure` writes it. Lines differ by dash and marker as well as by
colour, so that every picture can be read in grey.
"""

from __future__ import annotations

from transferkit.scorer.pictures.convergence import plot_convergence
from transferkit.scorer.pictures.style import save_figure

__all__ = ["plot_convergence", "save_figure"]
