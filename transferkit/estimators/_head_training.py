"""Train a head on features that are at hand, all of them in memory."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from transferkit.errors import DivergedError, require
from transferkit.heads import Objective
from transferkit.optimization import EarlyStopping, WarmupCosine, WeightAverage, lone_row


@dataclass(frozen=True)
class HeadTraining:
    """How a head is trained.

    Attributes:
        epochs: At most.
        batch_size: B.
        learning_rate: The highest, of AdamW; it rises over the first tenth and falls in a cosine.
        weight_decay: Of AdamW.
        average: An average of the weights to take instead of the last.
        early_stopping: When to stop, by the loss on held-out rows; the best epoch's weights are taken then.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    average: WeightAverage | None = None
    early_stopping: EarlyStopping | None = None

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        require(self.learning_rate > 0, "learning_rate", "positive", self.learning_rate)
        require(self.weight_decay >= 0, "weight_decay", "zero or positive", self.weight_decay)


class Rows(NamedTuple):
    """Features (N, D) and their targets, (N,) int64 or (N, K) floating."""

    features: Tensor
    targets: Tensor


class Trained(NamedTuple):
    """A trained head, in evaluation mode; mean training loss by epoch; and held-out loss by epoch, if any."""

    head: nn.Module
    losses: list[float]
    held_losses: list[float]


def train_head(
    head: nn.Module,
    rows: Rows,
    objective: Objective,
    settings: HeadTraining,
    generator: torch.Generator,
    held: Rows | None = None,
) -> Trained:
    """Train a head.

    Args:
        head: On the device of the rows; changed in place.
        rows: To train on.
        objective: Gives the loss.
        settings: How.
        generator: Of the order of the rows, on the cpu.
        held: To measure the loss on after each epoch; needed for early stopping.

    Raises:
        DivergedError: The loss became infinite or NaN.
    """
    training = _Training(head, settings, objective, math.ceil(len(rows.features) / settings.batch_size))
    losses: list[float] = []
    held_losses: list[float] = []
    best = None
    for epoch in range(settings.epochs):
        order = torch.randperm(len(rows.features), generator=generator)
        losses.append(training.epoch(rows, order))
        if not math.isfinite(losses[-1]):
            raise DivergedError(
                f"the loss became {losses[-1]} in epoch {epoch + 1}; lower learning_rate={settings.learning_rate:g}"
            )
        if held is not None and settings.early_stopping is not None:
            held_losses.append(mean_loss(training.current, held, objective))
            gains = [-loss for loss in held_losses]
            if settings.early_stopping.best(gains) == epoch:
                best = copy.deepcopy(training.current.state_dict())
            if settings.early_stopping.stop(gains):
                break
    head.load_state_dict(training.current.state_dict() if best is None else best)
    return Trained(head.eval(), losses, held_losses)


class _Training:
    """A head, its optimizer, its rate and its average, from step to step."""

    def __init__(
        self, head: nn.Module, settings: HeadTraining, objective: Objective, steps_per_epoch: int
    ) -> None:
        self.head, self.settings, self.objective = head, settings, objective
        self.steps_per_epoch, self.steps = steps_per_epoch, 0
        self.rate = WarmupCosine(settings.epochs, warmup=settings.epochs / 10)
        self.optimizer = torch.optim.AdamW(head.parameters(), weight_decay=settings.weight_decay)
        self.average = settings.average.of(head) if settings.average else None

    @property
    def current(self) -> nn.Module:
        """The average, once there is one, or the head."""
        averaged = self.average is not None and self.average.n_averaged > 0
        return self.average.module if averaged else self.head  # type: ignore[union-attr]

    def epoch(self, rows: Rows, order: Tensor) -> float:
        """Train on the rows once, in this order; return the mean loss of those that count."""
        self.head.train()
        device = rows.features.device
        total = torch.zeros(2, dtype=torch.float64, device=device)  # loss, rows
        for chosen in torch.split(order.to(device), self.settings.batch_size):
            total += self.step(rows.features[chosen], rows.targets[chosen])
        loss, counted = total.tolist()
        return float(loss / max(counted, 1.0))

    def step(self, features: Tensor, targets: Tensor) -> Tensor:
        """Take one step; return the summed loss and the number of rows that count, (2,) float64."""
        factor = self.rate.factor((self.steps + 0.5) / self.steps_per_epoch)
        self.optimizer.param_groups[0]["lr"] = self.settings.learning_rate * factor
        with lone_row(self.head, features):
            logits = self.head(features)
        loss = self.objective.losses(logits, targets).sum()
        counted = self.objective.counted(targets).sum()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss / counted.clamp(min=1))
        self.optimizer.step()
        self.steps += 1
        average = self.settings.average
        if average and self.average is not None and average.due(self.steps, self.steps_per_epoch):
            self.average.update_parameters(self.head)
        return torch.stack([loss.detach().double(), counted.double()])


@torch.inference_mode()
def mean_loss(head: nn.Module, rows: Rows, objective: Objective) -> float:
    """Return a head's mean loss, in evaluation mode, over the rows that count."""
    losses = objective.losses(head.eval()(rows.features), rows.targets)
    return float(losses.sum() / objective.counted(rows.targets).sum().clamp(min=1))
