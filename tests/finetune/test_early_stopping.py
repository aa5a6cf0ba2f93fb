"""A run stops when the held-out part says so, and goes back to its best epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.finetune.tiny import Stream, tiny_run
from transferkit.errors import StateError
from transferkit.finetune import AveragedWeights, Run, StopEarly, fit, read_run
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


FIGURES = [0.3, 0.6, 0.5, 0.55, 0.9]


def by_epoch(run: Run) -> float:
    return FIGURES[run.epoch - 1]


@pytest.mark.parametrize("broken_off", [1, 2, 3, 4])
@pytest.mark.parametrize("saved", ["after the epoch", "at the end"])
def test_a_resumed_run_stops_where_it_would_have_stopped(tmp_path: Path, broken_off: int, saved: str) -> None:
    whole, rule = tiny_run(), EarlyStopping(patience=2)
    undisturbed = StopEarly(rule, by_epoch)
    fit(whole, Stream(), epochs=9, stop=undisturbed)

    first, file = tiny_run(), tmp_path / "run.pt"
    fit(first, Stream(), broken_off, stop=StopEarly(rule, by_epoch), after_epoch=lambda run: run.save(file))
    if saved == "at the end":
        first.save(file)
    second, stop = tiny_run(seed=3), StopEarly(rule, by_epoch)
    second.restore(read_run(file))
    fit(second, Stream(), epochs=9, stop=stop)

    assert (second.epoch, stop.measures) == (whole.epoch, undisturbed.measures)
    assert stop.restore(second) == undisturbed.restore(whole) == 2
    pairs = zip(second.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_best_epoch_comes_back_from_a_file_without_training(tmp_path: Path) -> None:
    run, rule = tiny_run(), EarlyStopping(patience=2)
    fit(run, Stream(), epochs=9, stop=StopEarly(rule, by_epoch))
    file, loaded = run.save(tmp_path / "run.pt"), tiny_run(seed=3)
    loaded.restore(read_run(file))
    assert StopEarly(rule, by_epoch).restore(loaded) == 2


def test_another_rule_on_a_live_run_starts_anew() -> None:
    run = tiny_run()
    fit(run, Stream(), epochs=2, stop=StopEarly(EarlyStopping(), by_epoch))
    another = StopEarly(EarlyStopping(), lambda run: -by_epoch(run))
    fit(run, Stream(), epochs=3, stop=another)
    assert another.measures == [-0.5]
