"""Fold neon's dropout factor into weights, since neon and torch scale dropout differently.

neon drops while training and multiplies by ``keep`` while testing; torch divides by ``keep`` while training
and does nothing while testing. neon's test factor is moved into the next weights that are linear in their
input, so that the torch model computes the same function, training and testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transferkit.checkpoints.neon._records import Container, Record, Steps

_ABSORBS = frozenset(
    {
        *("Convolution", "Convolution_bias", "Deconvolution", "Linear", "BatchNorm", "BatchNormAutodiff"),
        *("Recurrent", "LSTM", "BiRNN", "BiLSTM"),
    }
)
_PASSES = frozenset(
    {
        *("Pooling", "Reshape", "BranchNode", "SkipNode", "RoiPooling", "BiSum"),
        *("RecurrentSum", "RecurrentMean", "RecurrentLast"),
    }
)
_PASSING_ACTIVATIONS = frozenset(["Rectlin", "Identity"])


@dataclass
class DropoutPlan:
    """The factors of dropout layers, by the layer whose weights absorb them.

    Attributes:
        scales: Factor of the input weights, by layer name.
        unplaced: Dropout layers whose factor no following layer can absorb.
    """

    scales: dict[str, float] = field(default_factory=dict)
    unplaced: list[str] = field(default_factory=list)


def plan_dropout(steps: Steps, *, caffe: bool) -> DropoutPlan:
    """Return how to fold every dropout layer of a tree into the weights after it.

    Args:
        steps: The layers.
        caffe: Whether the file was written in neon's caffe mode, whose dropout is torch's.
    """
    fold = _Fold(caffe)
    fold.walk(steps, _Pending())
    return fold.plan


@dataclass(frozen=True)
class _Pending:
    """The factor still to be applied at one point of the network, and the dropout layers it came from."""

    factor: float = 1.0
    names: tuple[str, ...] = ()


class _Fold:
    """Walks a tree of layers and carries the pending factor along."""

    def __init__(self, caffe: bool) -> None:
        self.caffe = caffe
        self.plan = DropoutPlan()
        self.at_branch_node: dict[str, _Pending] = {}

    def walk(self, steps: Steps, pending: _Pending) -> None:
        """Follow a sequence to its end; a factor still pending there cannot be absorbed."""
        self.unplace(self.through(steps, pending))

    def through(self, steps: Steps, pending: _Pending) -> _Pending:
        for step in steps:
            pending = (
                self.container(step, pending) if isinstance(step, Container) else self.record(step, pending)
            )
        return pending

    def record(self, record: Record, pending: _Pending) -> _Pending:
        if record.type in ("Dropout", "DropoutBinary"):
            keep = _keep(record.config)
            if (self.caffe and record.type == "Dropout") or keep == 1:
                return pending
            return _Pending(pending.factor * keep, (*pending.names, record.name))
        if record.type == "BranchNode":
            return self.at_branch_node.setdefault(record.config.get("name", record.name), pending)
        if record.type in _PASSES or _passes(record.config.get("transform")):
            return pending
        if record.type in _ABSORBS and pending.names:
            self.plan.scales[record.name] = pending.factor
            return _Pending()
        return self.unplace(pending)

    def container(self, container: Container, pending: _Pending) -> _Pending:
        """Give the factor to every branch; if all pass on the same, it goes on after the container."""
        if container.type in ("Tree", "SingleOutputTree"):
            for branch in container.branches:
                self.walk(branch, pending)
                pending = _Pending()  # a side branch begins at a branch node, which knows its own
            return pending
        ends = [self.through(branch, pending) for branch in container.branches]
        if all(end == ends[0] for end in ends):
            return ends[0] if ends else pending
        for end in ends:
            self.unplace(end)
        return _Pending()

    def unplace(self, pending: _Pending) -> _Pending:
        self.plan.unplaced += [name for name in pending.names if name not in self.plan.unplaced]
        return _Pending()


def _keep(config: Mapping[str, Any]) -> float:
    keep = config.get("keep", 0.5)  # neon omits default values from its files
    return float(keep) if isinstance(keep, int | float) and 0 < keep <= 1 else 1.0


def _passes(transform: Any) -> bool:
    """Whether an activation f satisfies f(c x) = c f(x) for positive c."""
    name = str(transform.get("type", "")).rpartition(".")[2] if isinstance(transform, Mapping) else ""
    return name in _PASSING_ACTIVATIONS
