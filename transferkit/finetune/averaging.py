"""Average the weights of a model while an optimizer trains it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from transferkit.errors import StateError, require
from transferkit.optimization import WeightAverage


class AveragedWeights:
    """Takes in a model's weights after the optimizer's steps, as a :class:`WeightAverage` says.

    It listens to the optimizer, so the loop need not know of it: a step that a gradient scaler skips is not counted.

    Args:
        model: The model in training.
        optimizer: Of the model.
        settings: Which weights, and how much each counts.
        steps_per_epoch: Of the optimizer.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1)
        >>> averaged = AveragedWeights(model, optimizer, WeightAverage(decay=None), steps_per_epoch=4)
        >>> for value in (1.0, 2.0, 6.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     optimizer.step()
        >>> averaged.model.weight
        Parameter containing:
        tensor([[3.]])
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, settings: WeightAverage, *, steps_per_epoch: int
    ) -> None:
        require(steps_per_epoch >= 1, "steps_per_epoch", "at least 1", steps_per_epoch)
        self.settings, self.steps_per_epoch, self.steps = settings, steps_per_epoch, 0
        self._source, self._average = model, settings.of(model)
        self._listening = optimizer.register_step_post_hook(self._after_step)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights; as it began, as long as nothing was averaged."""
        averaged: nn.Module = self._average.module
        return averaged

    @property
    def count(self) -> int:
        """How many weights are in the average."""
        return int(self._average.n_averaged)

    def stop(self) -> None:
        """Listen no more."""
        self._listening.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run checkpoint stores: steps, weights taken in, and the average, as it is: not a copy."""
        return {"steps": self.steps, "average": self._average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            StateError: It is of another model.
        """
        try:
            self._average.load_state_dict(state["average"])
        except (KeyError, RuntimeError) as error:
            raise StateError(f"the saved average of weights is of another model: {error}") from error
        self.steps = state["steps"]

    def _after_step(self, *_: object) -> None:
        self.steps += 1
        if self.settings.due(self.steps, self.steps_per_epoch):
            self._average.update_parameters(self._source)
