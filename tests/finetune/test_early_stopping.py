"""A run stops when the held-out part says so, and goes back to its best epoch."""

from __future__ import annotations

import pytest
import torch

from tests.finetune.tiny import Stream, tiny_run
from transferkit.errors import StateError
from transferkit.finetune import AveragedWeights, Run, StopEarly, fit
from transferkit.optimization import EarlyStopping, WeightAverage


def test_it_stops_and_the_best_epoch_comes_back() -> None:
    seen: list[torch.Tensor] = []
    figures = iter([0.3, 0.6, 0.5, 0.55, 0.9])

    def measure(run: Run) -> float:
        seen.append(next(iter(run.model.state_dict().values())).clone())
        return next(figures)

    run, stop = tiny_run(), StopEarly(EarlyStopping(patience=2), measure)
    fit(run, Stream(), epochs=9, stop=stop)
    assert run.epoch == 4 and stop.measures == [0.3, 0.6, 0.5, 0.55]
    assert stop.restore(run) == 2
    assert torch.equal(next(iter(run.model.state_dict().values())), seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_of_averaged_weights_the_averaged_ones_come_back() -> None:
    run = tiny_run()
    run.average = AveragedWeights(run.model, run.optimizer, WeightAverage(0.9), steps_per_epoch=5)
    figures = iter([0.5, 0.4, 0.3])
    stop = StopEarly(EarlyStopping(patience=2), lambda run: next(figures))
    fit(run, Stream(), epochs=1, stop=stop)
    best = {key: tensor.clone() for key, tensor in run.tested_model.state_dict().items()}
    fit(run, Stream(), epochs=9, stop=stop)
    assert run.epoch == 3 and stop.restore(run) == 1
    assert all(torch.equal(tensor, best[key]) for key, tensor in run.tested_model.state_dict().items())
    assert run.tested_model is not run.model


def test_going_back_before_anything_was_measured_is_an_error() -> None:
    with pytest.raises(StateError, match="no epoch was measured"):
        StopEarly(EarlyStopping(), lambda run: 0.0).restore(tiny_run())
