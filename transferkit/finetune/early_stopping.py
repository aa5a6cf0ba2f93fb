"""Stop training when a held-out part says so, and go back to the best epoch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from transferkit.errors import StateError
from transferkit.finetune.run import Run
from transferkit.optimization import EarlyStopping


class StopEarly:
    """Measures the run after each epoch, for ``fit(..., stop=...)``, and remembers the best epoch's weights.

    Args:
        rule: When to stop.
        measure: Returns how good the run is on data that it is not trained on, larger is better, such as the mean
            average precision of ``run.tested_model`` on photos held out by
            :func:`~transferkit.optimization.hold_out`. Of several processes, on each the same.

    Attributes:
        measures: One per epoch measured.

    Example:
        >>> stop = StopEarly(EarlyStopping(patience=2), measure=lambda run: run.history[-1].accuracy)
        >>> stop.measures
        []
    """

    def __init__(self, rule: EarlyStopping, measure: Callable[[Run], float]) -> None:
        self.rule, self.measure = rule, measure
        self.measures: list[float] = []
        self.best_epoch = 0
        self._best: dict[str, Tensor] | None = None

    def __call__(self, run: Run) -> bool:
        """Measure the run; return whether to stop."""
        self.measures.append(self.measure(run))
        if self.rule.best(self.measures) == len(self.measures) - 1:
            self.best_epoch = run.epoch
            self._best = {key: tensor.detach().clone() for key, tensor in run.tested_model.state_dict().items()}
        return self.rule.stop(self.measures)

    def restore(self, run: Run) -> int:
        """Give the model that is tested the best epoch's weights; return that epoch, 1-based.

        Raises:
            StateError: Nothing was measured yet.
        """
        if self._best is None:
            raise StateError("no epoch was measured; pass this to fit(..., stop=...) first")
        run.tested_model.load_state_dict(self._best)
        return self.best_epoch
