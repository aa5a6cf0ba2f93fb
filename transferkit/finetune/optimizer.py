"""The optimizer, learning rate schedule and average of weights that a protocol's settings describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from transferkit.checkpoints import Checkpoint
from transferkit.distributed import unwrapped
from transferkit.errors import ArgumentError, StateError, TransferKitError, require
from transferkit.finetune.protocol import Optimization
from transferkit.optimization import WeightAverage
from transferkit.transfer import TransferReport, WeightTransfer


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    settings: Optimization,
    *,
    transferred: Iterable[nn.Parameter] = (),
) -> Optimizer:
    """Return the optimizer of the parameters that require a gradient.

    Args:
        parameters: Parameters of a model; frozen ones are left out.
        settings: Settings of the recipe.
        transferred: Transferred parameters, from :func:`transferred_parameters`. If ``settings`` give them a separate
            learning rate, they are the last parameter group.

    Raises:
        ArgumentError: Every parameter is frozen.
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
    """Tell whether to use the fused optimizer, which equals the plain loop up to rounding."""
    # On two cores a step on 25 million parameters took 0.08 s, against 0.35 s unfused. Small networks gain nothing.
    large = sum(parameter.numel() for parameter in parameters) >= 1_000_000
    cpu = large and all(parameter.device.type == "cpu" for parameter in parameters)
    return cpu or all(parameter.is_cuda for parameter in parameters)


class PerStep(LambdaLR):
    """A schedule that the loop steps after every optimizer step; others are stepped once per epoch."""


def build_schedule(
    optimizer: Optimizer, settings: Optimization, *, steps_per_epoch: int | None = None
) -> LambdaLR:
    """Return the learning rate schedule, which the training loop steps.

    Args:
        optimizer: The optimizer whose learning rates it sets.
        settings: Settings of the recipe.
        steps_per_epoch: Number of optimizer steps per epoch; required with ``settings.schedule``. A step has the rate
            of its middle, so that the first one is not taken at rate zero.

    Returns:
        A schedule to step once per epoch, or after every optimizer step if ``settings.schedule`` is given.

    Raises:
        ArgumentError: ``steps_per_epoch`` is required and not given.
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
    """Return the transferred parameters that are trained.

    Args:
        model: The network, its frozen layers already frozen.
        transfer: Report of the transfer, or its ``to_dict()``; ``None`` if nothing was transferred.
    """
    if transfer is None:
        return []
    report = transfer if isinstance(transfer, TransferReport) else TransferReport.from_dict(dict(transfer))
    return [parameter for parameter in report.parameters_in(model) if parameter.requires_grad]


def trains_transferred(model: nn.Module, transfer: TransferReport | Mapping[str, Any] | None) -> bool:
    """Tell whether any :func:`transferred_parameters` exist.

    Only these need the low learning rates of :attr:`Protocol.pretrained`. New layers over frozen ones are newly
    initialized, and train like a network from scratch.

    Args:
        model: As for :func:`transferred_parameters`.
        transfer: As for :func:`transferred_parameters`.
    """
    return bool(transferred_parameters(model, transfer))


class AveragedWeights:
    """EMA or plain average of a model's weights, updated by a hook on the optimizer's steps.

    The training loop needs no call for it. A step that a gradient scaler skips is not counted.

    Args:
        model: The model in training.
        optimizer: The model's optimizer.
        settings: Kind of average, and when it is updated.
        steps_per_epoch: Number of optimizer steps per epoch.

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
        self._source = unwrapped(model)
        self._average = settings.of(self._source)
        self._listening = optimizer.register_step_post_hook(self._after_step)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights; before the first update, with the initial ones."""
        averaged: nn.Module = self._average.module
        return averaged

    @property
    def count(self) -> int:
        """Number of updates so far."""
        return int(self._average.n_averaged)

    def copy_buffers(self) -> None:
        """Take the model's buffers as they are now, as each update does."""
        for own, others in zip(self.model.buffers(), self._source.buffers(), strict=True):
            own.copy_(others)

    def stop(self) -> None:
        """Remove the hook, which ends the updates."""
        self._listening.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the average's state, whose tensors are not copied."""
        return {"steps": self.steps, "average": self._average.state_dict(), "settings": repr(self.settings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state, all of it or nothing.

        Raises:
            StateError: The state belongs to another model.
        """
        try:
            saved, steps = state["average"], int(state["steps"])
            WeightTransfer(Checkpoint.from_state_dict(saved)).apply(self._average)
        except (KeyError, TypeError, ValueError, TransferKitError) as error:
            raise StateError(
                f"the saved average of weights is of another model: {error}; build the model that it was saved with"
            ) from error
        self.steps = steps

    def _after_step(self, *_: object) -> None:
        self.steps += 1
        if self.settings.due(self.steps, self.steps_per_epoch):
            self._average.update_parameters(self._source)
