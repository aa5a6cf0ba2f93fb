"""The optimizer, its schedule and the average of weights from a protocol's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from transferkit.errors import ArgumentError, StateError, require
from transferkit.finetune.protocol import Optimization
from transferkit.optimization import WeightAverage
from transferkit.transfer import TransferReport


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


# The optimizer and its schedule from a protocol's settings, and which of the settings apply.


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: Optimization,
    *,
    transferred: Iterable[nn.Parameter] = (),
) -> Optimizer:
    """Return the optimizer of those of ``parameters`` that require a gradient.

    Args:
        parameters: A model's.
        settings: The recipe's.
        transferred: Which of them were transferred, from :func:`transferred_parameters`. Where ``settings`` give
            those a rate of their own they are the last parameter group.

    Raises:
        ArgumentError: Every parameter is frozen, so training would change nothing.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ArgumentError("every parameter is frozen, so nothing would be trained; freeze fewer layers")
    old = {id(parameter) for parameter in transferred if settings.transferred != 1}
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if id(parameter) not in old]},
        {
            "params": [parameter for parameter in trainable if id(parameter) in old],
            "lr": settings.learning_rate * settings.transferred,
        },
    ]
    groups = [group for group in groups if group["params"]]
    how: dict[str, Any] = {
        "lr": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "fused": _is_worth_fusing(trainable),
    }
    if settings.method == "adamw":
        return AdamW(groups, betas=(settings.momentum, 0.999), **how)
    return SGD(groups, momentum=settings.momentum, **how)


def _is_worth_fusing(parameters: Sequence[nn.Parameter]) -> bool:
    """Tell whether to update all parameters in one pass, which equals the plain loop up to rounding.

    On two cores a step on 25 million parameters took 0.08 s, by the plain loop 0.35 s. Small networks gain nothing.
    """
    large = sum(parameter.numel() for parameter in parameters) >= 1_000_000
    cpu = large and all(parameter.device.type == "cpu" for parameter in parameters)
    return cpu or all(parameter.is_cuda for parameter in parameters)


class PerStep(LambdaLR):
    """A schedule that the loop steps after every step of the optimizer, where others are stepped once per epoch."""


def build_schedule(
    optimizer: Optimizer, settings: Optimization, *, steps_per_epoch: int | None = None
) -> LambdaLR:
    """Return the schedule, which the loop steps: once per epoch, or :class:`PerStep` where the rate never rests.

    Args:
        optimizer: Whose rate it sets.
        settings: The recipe's.
        steps_per_epoch: Of the optimizer; needed where ``settings.schedule`` is given. Each step has the rate of
            its middle, so that not even the first one is taken at zero.

    Raises:
        ArgumentError: It is needed and not given.
    """
    if settings.schedule is None:
        return LambdaLR(optimizer, settings.factor)
    if not steps_per_epoch:
        raise ArgumentError(f"steps_per_epoch must be given for {settings.schedule}, got {steps_per_epoch!r}")
    steps = steps_per_epoch
    return PerStep(optimizer, lambda step: settings.factor((step + 0.5) / steps))


def transferred_parameters(
    model: nn.Module, transfer: TransferReport | Mapping[str, Any] | None
) -> list[nn.Parameter]:
    """Return the parameters that are trained and were transferred.

    Args:
        model: With its frozen layers frozen.
        transfer: The report, or its ``to_dict()``; ``None`` where nothing was transferred.
    """
    if transfer is None:
        return []
    report = transfer if isinstance(transfer, TransferReport) else TransferReport.from_dict(dict(transfer))
    moved = set(report.moved)
    return [
        parameter for name, parameter in model.named_parameters() if name in moved and parameter.requires_grad
    ]


def trains_transferred(model: nn.Module, transfer: TransferReport | Mapping[str, Any] | None) -> bool:
    """Tell whether there are any :func:`transferred_parameters`.

    Only then is there something for the low learning rates of a pretrained regime to protect; new layers over
    frozen ones start from nothing, and train like a network from scratch.
    """
    return bool(transferred_parameters(model, transfer))
