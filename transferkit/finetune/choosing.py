"""What held-out photos decide: when to stop, the exponent, how long to train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.data import Subset

from transferkit.datasets import Presence
from transferkit.errors import ArgumentError, StateError
from transferkit.finetune.on_features import AS_THEY_ARE
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.run import Run, build_run
from transferkit.finetune.scoring import fill_scorer
from transferkit.finetune.settings import LoopSettings
from transferkit.finetune.training import fit
from transferkit.optimization import EarlyStopping, HeldOut, HeldOutChoice, hold_out
from transferkit.progress import Progress
from transferkit.scorer import PatchLog


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


# Choose the exponent of the score, and how long to train, on photos held out of the training ones.

_MeanAPs: TypeAlias = Mapping[int, tuple[float, ...]]  # by epoch, for each exponent


@dataclass(frozen=True)
class Chosen:
    """What held-out photos said.

    Attributes:
        epochs: How many to train.
        exponent: Of the score.
        photos: How many were held out.
        exponents: That were compared.
        mean_aps: By 1-based epoch, for each of ``exponents``, in 0..1.
    """

    epochs: int
    exponent: float
    photos: int
    exponents: tuple[float, ...]
    mean_aps: Mapping[int, tuple[float, ...]]

    def __str__(self) -> str:
        lines = [
            f"chosen on {self.photos} held-out photos: {self.epochs} epochs, exponent {self.exponent:g}",
            "  mean AP, %, by exponent  " + "".join(f"{exponent:>7g}" for exponent in self.exponents),
        ]
        for epoch, row in self.mean_aps.items():
            lines.append(f"  {f'after epoch {epoch}':<25}" + "".join(f"{100 * ap:7.1f}" for ap in row))
        return "\n".join(lines)


def choose_on_held_out(
    rest: nn.Module,
    cache: Any,
    protocol: Protocol,
    optimization: Optimization,
    *,
    transferred: Iterable[nn.Parameter] = (),
    presence: Presence | None = None,
    seed: int = 0,
    num_workers: int = 0,
    loop: LoopSettings = LoopSettings(),  # noqa: B008 - a frozen value
    progress: Progress = False,
) -> Chosen:
    """Train a copy of what comes after frozen layers on a part of the photos, and test it on the rest of them.

    Args:
        rest: What is trained, on features; left as it was. From
            :func:`~transferkit.finetune.frozen_features`.
        cache: The features of the training photos: a filled :class:`~transferkit.features.FeatureCache`, or part
            of one.
        protocol: Says what is chosen from (``choice``), and at most how many epochs.
        optimization: Of the regime that ``rest`` is trained in.
        transferred: Those parameters of ``rest`` that were transferred; see :func:`build_run`.
        presence: Which classes each photo shows; what ``cache.presence()`` returns unless given.
        seed: Of the split, and of the sampler's choices.
        num_workers: Of the samplers.
        loop: As for :func:`fit`.
        progress: Likewise.

    Raises:
        ArgumentError: The protocol has no choice to make, or there are too few photos to hold some out.
    """
    choice = _choice_of(protocol)
    truth = cache.presence() if presence is None else presence
    parts = _parts(truth, choice, protocol, seed)
    how: dict[str, Any] = {"seed": seed, "num_workers": num_workers, "device": next(rest.parameters()).device}
    train = protocol.sampler(Subset(cache, parts.train.tolist()), mode="train", **how)
    held = protocol.sampler(Subset(cache, parts.held.tolist()), mode="test", **how)
    trial, old = copy.deepcopy((rest, list(transferred)))
    run = build_run(
        trial,
        protocol,
        optimization,
        preprocessing=AS_THEY_ARE,
        steps_per_epoch=-(-len(train) // loop.accumulate),
        transferred=old,
    )
    targets = truth.present[parts.held], truth.difficult_only[parts.held]
    mean_aps: dict[int, tuple[float, ...]] = {}

    def measure(run: Run) -> bool:
        """Test after each epoch, or after the last; return whether to stop."""
        if choice.stopping is None and run.epoch < protocol.epochs:
            return False
        log = PatchLog(len(parts.held), truth.present.shape[1], protocol.exponent, protocol.reduction)
        fill_scorer(run.tested_model, held, log, AS_THEY_ARE, objective=run.objective, loop=loop)
        aps = [protocol.ap_rule.average_precision(log.compute(e), *targets) for e in choice.exponents]
        mean_aps[run.epoch] = tuple(ap.nanmean().item() for ap in aps)
        return choice.stopping is not None and choice.stopping.stop(_best_of_each(mean_aps))

    fit(run, train, protocol.epochs, loop=loop, stop=measure, progress=progress)
    epochs, exponent = _best(mean_aps, choice, protocol)
    return Chosen(epochs, exponent, len(parts.held), choice.exponents, mean_aps)


def _choice_of(protocol: Protocol) -> HeldOutChoice:
    if protocol.choice is None:
        raise ArgumentError(f"protocol must be one with a choice, got {protocol.name!r}")
    return protocol.choice


def _parts(truth: Presence, choice: HeldOutChoice, protocol: Protocol, seed: int) -> HeldOut:
    """Return which photos train and which are held out; refuse too few."""
    parts = hold_out(truth.present[:, 1:], choice.fraction, seed)
    if len(parts.train) and len(parts.held):
        return parts
    raise ArgumentError(
        f"{len(truth.present)} photos are too few to hold {choice.fraction:.0%} of them out for "
        f"{protocol.name}; take more, or decide yourself: protocol.decided(epochs={protocol.epochs}, "
        f"exponent={protocol.exponent:g})"
    )


def _best(mean_aps: _MeanAPs, choice: HeldOutChoice, protocol: Protocol) -> tuple[int, float]:
    """Return the best number of epochs, and its best exponent; of equally good exponents the recipe's own."""
    epochs = protocol.epochs
    if choice.stopping is not None:
        epochs = list(mean_aps)[choice.stopping.best(_best_of_each(mean_aps))]
    found = dict(zip(choice.exponents, mean_aps[epochs], strict=True))
    return epochs, max(found, key=lambda exponent: (found[exponent], exponent == protocol.exponent))


def _best_of_each(mean_aps: _MeanAPs) -> list[float]:
    return [max(row) for row in mean_aps.values()]
