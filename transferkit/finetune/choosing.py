"""Decisions on held-out photos: early stopping, the number of epochs, and the exponent of the score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.data import Subset

from transferkit import distributed
from transferkit.checkpoints import Checkpoint
from transferkit.datasets import Presence
from transferkit.errors import ArgumentError, StateError
from transferkit.finetune.on_features import AS_THEY_ARE
from transferkit.finetune.protocol import Optimization, Protocol
from transferkit.finetune.run import Run, StopMemory, build_run
from transferkit.finetune.scoring import fill_scorer
from transferkit.finetune.settings import LoopSettings
from transferkit.finetune.training import fit
from transferkit.optimization import EarlyStopping, HeldOut, HeldOutChoice, hold_out
from transferkit.progress import Progress
from transferkit.scorer import PatchLog
from transferkit.transfer import WeightTransfer

_MeanAPs: TypeAlias = Mapping[int, tuple[float, ...]]  # by 1-based epoch, for each exponent


class StopEarly:
    """Early stopping for ``fit(..., stop=...)``, which keeps the best epoch's weights.

    Args:
        rule: Rule that decides when to stop.
        measure: Returns the run's quality on data that it is not trained on, larger is better; for example the mean
            average precision of ``run.tested_model`` on photos held out by
            :func:`~transferkit.optimization.hold_out`. On several ranks it must be that of all ranks' photos, as
            :func:`~transferkit.finetune.score_images` gives it; figures that differ are refused.

    What it remembers is saved with the run, so that a resumed run stops where it would have without the break.

    Example:
        >>> stop = StopEarly(EarlyStopping(patience=2), measure=lambda run: run.history[-1].accuracy)
        >>> stop.measures
        []
    """

    def __init__(self, rule: EarlyStopping, measure: Callable[[Run], float]) -> None:
        self.rule, self.measure = rule, measure
        self._memory = StopMemory()

    @property
    def measures(self) -> list[float]:
        """One value per measured epoch."""
        return self._memory.measures

    @property
    def best_epoch(self) -> int:
        """The best epoch so far, 1-based; 0 before the first one."""
        return self._memory.best_epoch

    def __call__(self, run: Run) -> bool:
        """Measure the run and tell whether to stop."""
        self._recall(run)
        old = self._memory
        measures = [*old.measures, distributed.agreed("measure", float(self.measure(run)))]
        if self.rule.best(measures) == len(measures) - 1:
            best = {key: tensor.detach().clone() for key, tensor in run.tested_model.state_dict().items()}
            self._memory = StopMemory(measures, run.epoch, run.epoch, best)
        else:
            self._memory = StopMemory(measures, run.epoch, old.best_epoch, old.best)
        run.stopping = self._memory
        return self.rule.stop(measures)

    def catch_up(self, run: Run) -> bool:
        """Recall what a resumed run remembers; tell whether it had to stop.

        A run is saved before its last epoch is measured, which is made up for here.
        """
        self._recall(run)
        if run.stopping is not self._memory:
            run.stopping = self._memory
        elif run.epoch > self._memory.epoch:
            return self(run)
        return self.rule.stop(self.measures)

    def restore(self, run: Run) -> int:
        """Load the best epoch's weights into ``run.tested_model``, all or nothing; return that epoch, 1-based.

        Raises:
            StateError: No epoch was measured yet.
        """
        self._recall(run)
        if self._memory.best is None:
            raise StateError("no epoch was measured; pass this to fit(..., stop=...) first")
        WeightTransfer(Checkpoint.from_state_dict(self._memory.best)).apply(run.tested_model)
        return self.best_epoch

    def _recall(self, run: Run) -> None:
        """Take the memory of a run that was just restored."""
        if run.stopping is not None and run.stopping.restored:
            self._memory = run.stopping = replace(run.stopping, restored=False)


@dataclass(frozen=True)
class Chosen:
    """Number of epochs and exponent chosen on held-out photos, with the figures behind the choice.

    Attributes:
        epochs: Number of epochs to train.
        exponent: Exponent of the score.
        photos: Number of held-out photos.
        exponents: Exponents that were compared.
        mean_aps: Mean AP in 0..1 for each of ``exponents``, by 1-based epoch.
        scores: (M, K) scores of the held-out photos with the chosen epochs and exponent.
        places: (M,) places of the held-out photos.
    """

    epochs: int
    exponent: float
    photos: int
    exponents: tuple[float, ...]
    mean_aps: Mapping[int, tuple[float, ...]]
    scores: Tensor = field(repr=False, compare=False)
    places: Tensor = field(repr=False, compare=False)

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
    """Choose the number of epochs and the exponent: train on a part of the photos, and test on the others.

    Args:
        rest: The layers that are trained on features, from :func:`~transferkit.finetune.frozen_features`. A copy is
            trained.
        cache: Features of the training photos: a filled :class:`~transferkit.features.FeatureCache`, or a part of
            one.
        protocol: Recipe with the candidates (``choice``) and the maximum number of epochs.
        optimization: Settings of the optimizer for ``rest``, from :meth:`Protocol.optimization`.
        transferred: Transferred parameters of ``rest``; see :func:`build_run`.
        presence: Classes that each photo shows; ``cache.presence()`` by default.
        seed: Seed of the split and of the samplers.
        num_workers: Processes that load features.
        loop: As for :func:`fit`.
        progress: As for :func:`fit`.

    Returns:
        The choice.

    Raises:
        ArgumentError: The protocol has no ``choice``, or there are too few photos to hold some out.
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
    scores: dict[int, list[Tensor]] = {}  # by epoch, of each exponent

    def measure(run: Run) -> bool:
        """Test after each epoch, or only after the last if the epochs are fixed; tell whether to stop."""
        if choice.stopping is None and run.epoch < protocol.epochs:
            return False
        log = PatchLog(len(parts.held), truth.present.shape[1], protocol.exponent, protocol.reduction)
        log = fill_scorer(run.tested_model, held, log, AS_THEY_ARE, objective=run.objective, loop=loop)
        scores[run.epoch] = [log.compute(exponent).cpu() for exponent in choice.exponents]
        aps = [protocol.ap_rule.average_precision(each, *targets) for each in scores[run.epoch]]
        mean_aps[run.epoch] = tuple(ap.nanmean().item() for ap in aps)
        return choice.stopping is not None and choice.stopping.stop(_best_of_each(mean_aps))

    unboxed = truth.image_targets()
    unboxed = None if unboxed is None else unboxed[parts.train]
    fit(run, train, protocol.epochs, loop=loop, image_targets=unboxed, stop=measure, progress=progress)
    epochs, exponent = _best(mean_aps, choice, protocol)
    chosen = scores[epochs][choice.exponents.index(exponent)]
    found = Chosen(epochs, exponent, len(parts.held), choice.exponents, mean_aps, chosen, parts.held)
    return distributed.gather_objects(found)[0]  # processors that round otherwise may rank equals otherwise


def _choice_of(protocol: Protocol) -> HeldOutChoice:
    if protocol.choice is None:
        raise ArgumentError(
            f"protocol must be one with a choice, got {protocol.name!r}; give it choice=HeldOutChoice()"
        )
    return protocol.choice


def _parts(truth: Presence, choice: HeldOutChoice, protocol: Protocol, seed: int) -> HeldOut:
    """Split the photos; refuse too few."""
    parts = hold_out(truth.present[:, 1:], choice.fraction, seed)
    if len(parts.train) and len(parts.held):
        return parts
    raise ArgumentError(
        f"{len(truth.present)} photos are too few to hold {choice.fraction:.0%} of them out for "
        f"{protocol.name}; give more photos, or choose yourself: protocol.decided(epochs={protocol.epochs}, "
        f"exponent={protocol.exponent:g})"
    )


def _best(mean_aps: _MeanAPs, choice: HeldOutChoice, protocol: Protocol) -> tuple[int, float]:
    """Return the best number of epochs and its best exponent; among equal exponents, the recipe's own."""
    epochs = protocol.epochs
    if choice.stopping is not None:
        epochs = list(mean_aps)[choice.stopping.best(_best_of_each(mean_aps))]
    found = dict(zip(choice.exponents, mean_aps[epochs], strict=True))
    return epochs, max(found, key=lambda exponent: (found[exponent], exponent == protocol.exponent))


def _best_of_each(mean_aps: _MeanAPs) -> list[float]:
    return [max(row) for row in mean_aps.values()]
