"""An average of the weights that training passes through, which is often better than the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transferkit.errors import require


@dataclass(frozen=True)
class WeightAverage:
    """Which weights are averaged, and how much each counts.

    Attributes:
        decay: What the average keeps of itself each time, in (0, 1): an exponential moving average, that forgets
            about ``1 / (1 - decay)`` times back. Early on it is held at ``(1 + n) / (10 + n)`` for the n-th time,
            so that the first weights do not weigh on a short run. ``None``: all count alike (stochastic weight
            averaging).
        start: Epochs that pass before the first time, with their fraction.
        every: ``"step"`` of the optimizer, or ``"epoch"``.

    Example:
        >>> ema, swa = WeightAverage(decay=0.999), WeightAverage(decay=None, start=7, every="epoch")
        >>> [swa.due(step, steps_per_epoch=10) for step in (1, 70, 79, 80)]
        [False, False, False, True]

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018; Polyak and
        Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    decay: float | None = 0.999
    start: float = 0.0
    every: Literal["step", "epoch"] = "step"

    def __post_init__(self) -> None:
        require(self.decay is None or 0 < self.decay < 1, "decay", "in (0, 1), or None", self.decay)
        require(self.start >= 0, "start", "zero or positive", self.start)
        require(self.every in ("step", "epoch"), "every", "'step' or 'epoch'", self.every)

    def due(self, steps: int, steps_per_epoch: int) -> bool:
        """Tell whether the weights after so many steps of the optimizer are averaged."""
        started = steps > self.start * steps_per_epoch
        return started and (self.every == "step" or steps % steps_per_epoch == 0)

    def keep(self, count: int) -> float:
        """Return what an average of ``count`` weights keeps of itself when the next come in."""
        return count / (count + 1) if self.decay is None else min(self.decay, (1 + count) / (10 + count))

    def of(self, model: nn.Module) -> AveragedModel:
        """Return torch's averaged model: a copy of ``model`` whose ``update_parameters`` takes in its weights.

        Buffers are copied as they are. After an average with equal weights the statistics of batch norms that are
        trained are those of the last weights: refresh them with :func:`torch.optim.swa_utils.update_bn`.
        """
        averaged = AveragedModel(model, multi_avg_fn=self._mix)
        averaged.requires_grad_(False)
        return averaged

    @torch.no_grad()
    def _mix(self, averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
        torch._foreach_lerp_(list(averages), list(weights), 1 - self.keep(int(count)))

    def __str__(self) -> str:
        how = "equally" if self.decay is None else f"with decay {self.decay:g}"
        start = f" from epoch {self.start:g} on" if self.start else ""
        return f"weights averaged {how} after every {self.every}{start}"
