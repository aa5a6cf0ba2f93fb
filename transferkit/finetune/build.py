"""Put a model together with all that trains it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from transferkit.finetune.averaging import AveragedWeights
from transferkit.finetune.optimization import build_optimizer, build_schedule
from transferkit.finetune.run import Run
from transferkit.preprocessing import Preprocessing
from transferkit.protocols import Optimization, Protocol


def build_run(
    model: nn.Module,
    protocol: Protocol,
    optimization: Optimization,
    *,
    preprocessing: Preprocessing,
    steps_per_epoch: int,
    transferred: Iterable[nn.Parameter] = (),
    **known: Any,
) -> Run:
    """Return a run of a recipe, ready to train.

    Args:
        model: With frozen layers frozen.
        protocol: Gives the losses, and the average of weights.
        optimization: Of the regime it is trained in, from :meth:`Protocol.optimization`.
        preprocessing: What the model wants done to pixels.
        steps_per_epoch: Of the optimizer.
        transferred: Those of the model's parameters that were transferred, from
            :func:`~transferkit.finetune.transferred_parameters`, for a rate of their own.
        known: What else the :class:`Run` should know: ``settings``, ``frozen``, ``transfer``.

    Raises:
        ArgumentError: Every parameter is frozen.

    Example:
        >>> from transferkit.preprocessing import IMAGENET
        >>> from transferkit.protocols import NEON2016
        >>> run = build_run(
        ...     nn.Linear(8, 21), NEON2016, NEON2016.scratch, preprocessing=IMAGENET, steps_per_epoch=10
        ... )
        >>> run.epoch, run.optimizer.param_groups[0]["lr"]
        (0, 0.01)
    """
    optimizer = build_optimizer(model.parameters(), optimization, transferred=transferred)
    schedule = build_schedule(optimizer, optimization, steps_per_epoch=steps_per_epoch)
    run = Run(model, optimizer, schedule, preprocessing, **known)
    run.objective, run.image_loss = protocol.objective, protocol.image_loss
    if protocol.average:
        run.average = AveragedWeights(model, optimizer, protocol.average, steps_per_epoch=steps_per_epoch)
    return run
