"""Objective, schedule and average of a run do what they say in the loop, and outlive a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.finetune.tiny import SETTINGS, Stream, tiny_run
from transferkit.errors import ArgumentError, StateError
from transferkit.finetune import (
    AveragedWeights,
    Optimization,
    Run,
    build_optimizer,
    build_schedule,
    fit,
    read_run,
    score_images,
)
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL
from transferkit.optimization import WarmupCosine, WeightAverage
from transferkit.scorer import ImageScorer

COSINE = Optimization(0.1, momentum=0.9, weight_decay=1e-3, schedule=WarmupCosine(epochs=4, warmup=1))


def steered(settings: Optimization = COSINE, average: WeightAverage | None = None, seed: int = 0) -> Run:
    run = tiny_run(seed=seed)
    run.optimizer = build_optimizer(run.model.parameters(), settings)
    run.schedule = build_schedule(run.optimizer, settings, steps_per_epoch=5)
    run.average = average and AveragedWeights(run.model, run.optimizer, average, steps_per_epoch=5)
    return run


def rates(run: Run, epochs: int) -> list[float]:
    """The learning rate of each step."""
    seen: list[float] = []
    hook = run.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    fit(run, Stream(), epochs)
    hook.remove()
    return seen


def test_the_rate_rises_and_falls_step_by_step() -> None:
    expected = [0.1 * COSINE.factor((step + 0.5) / 5) for step in range(20)]
    assert rates(steered(), 4) == pytest.approx(expected)
    assert expected[0] > 0 and max(expected) == expected[5]


def test_transferred_layers_follow_the_schedule_at_a_rate_of_their_own() -> None:
    run = tiny_run()
    first, last = run.model[0], run.model[-1]
    slower = replace(COSINE, transferred=0.1)
    run.optimizer = build_optimizer(run.model.parameters(), slower, transferred=first.parameters())
    run.schedule = build_schedule(run.optimizer, slower, steps_per_epoch=5)
    new, old = run.optimizer.param_groups
    assert {id(p) for p in old["params"]} == {id(p) for p in first.parameters()}
    assert {id(p) for p in last.parameters()} < {id(p) for p in new["params"]}
    for epoch in range(1, 4):
        fit(run, Stream(), epoch)
        assert old["lr"] == pytest.approx(0.1 * new["lr"]) and new["lr"] > 0


def test_one_rate_for_all_is_one_group() -> None:
    model = tiny_run().model
    for settings, transferred in ((COSINE, model[0].parameters()), (replace(COSINE, transferred=0.1), ())):
        assert len(build_optimizer(model.parameters(), settings, transferred=transferred).param_groups) == 1
    only = build_optimizer(
        model[0].parameters(), replace(COSINE, transferred=0.1), transferred=model.parameters()
    )
    assert [group["lr"] for group in only.param_groups] == [pytest.approx(0.01)]


def test_a_run_with_other_rates_for_transferred_layers_is_not_gone_on_with(tmp_path: Path) -> None:
    run, slower = steered(), replace(COSINE, transferred=0.1)
    run.optimizer = build_optimizer(run.model.parameters(), slower, transferred=run.model[0].parameters())
    run.schedule = build_schedule(run.optimizer, slower, steps_per_epoch=5)
    fit(run, Stream(), 1)
    with pytest.raises(StateError, match="optimizer does not fit.*separate learning rates for transferred"):
        steered().restore(read_run(run.save(tmp_path / "run.pt")))


def test_adamw_is_torchs_own() -> None:
    run = steered(replace(COSINE, method="adamw"))
    assert isinstance(run.optimizer, torch.optim.AdamW)
    assert run.optimizer.defaults["betas"] == (0.9, 0.999)
    assert run.optimizer.defaults["weight_decay"] == 1e-3
    assert fit(run, Stream(), 3)[-1].loss < fit(steered(), Stream(), 1)[-1].loss
    with pytest.raises(ArgumentError, match="method must be 'sgd' or 'adamw', got 'adam'"):
        replace(COSINE, method="adam")


def test_steps_are_stepped_once_per_epoch_as_ever() -> None:
    assert rates(steered(SETTINGS), 3) == pytest.approx([0.1] * 10 + [0.01] * 5)


@pytest.mark.parametrize("average", [WeightAverage(0.9), WeightAverage(None, start=1, every="epoch")])
def test_a_stopped_run_goes_on_with_rate_and_average_bit_for_bit(
    tmp_path: Path, average: WeightAverage
) -> None:
    whole = steered(average=average)
    fit(whole, Stream(), 4)
    stopped = steered(average=average)
    fit(stopped, Stream(), 2)
    stopped.save(tmp_path / "run.pt")
    resumed = steered(average=average, seed=5)
    resumed.restore(read_run(tmp_path / "run.pt"))
    fit(resumed, Stream(), 4)
    for one, other in ((whole.model, resumed.model), (whole.tested_model, resumed.tested_model)):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert whole.tested_model is not whole.model


def test_a_run_with_an_average_does_not_go_on_without_it(tmp_path: Path) -> None:
    run = steered(average=WeightAverage())
    run.save(tmp_path / "run.pt")
    with pytest.raises(
        StateError, match="was saved with an average of its weights, and is restored without one"
    ):
        steered().restore(read_run(tmp_path / "run.pt"))


def test_sigmoids_are_trained_and_scored_as_sigmoids() -> None:
    run = tiny_run()
    run.objective = MULTI_LABEL
    fit(run, Stream(), 6)
    assert run.history[-1].loss < 0.7 * run.history[0].loss
    assert run.history[-1].accuracy > run.history[0].accuracy
    scores = {
        objective: score_images(
            run.model, TestStream(), ImageScorer(1, 3), run.preprocessing, objective=objective
        )
        for objective in (SINGLE_LABEL, MULTI_LABEL)
    }
    with torch.no_grad():
        logits = torch.cat([run.model.eval()(run.preprocessing(batch.pixels)) for batch in TestStream()])
    torch.testing.assert_close(scores[MULTI_LABEL], logits.sigmoid().double().pow(5).sum(dim=0, keepdim=True))
    assert not torch.allclose(scores[SINGLE_LABEL], scores[MULTI_LABEL])


class TestStream(Stream):
    """With the boxes that a scorer is given."""

    __test__ = False

    def __iter__(self):
        for batch in super().__iter__():
            batch.boxes = torch.zeros(16, 4)
            yield batch


def test_a_rate_that_never_rests_needs_to_know_the_steps() -> None:
    with pytest.raises(ArgumentError, match="steps_per_epoch must be given for warm-up over 1 epochs, cosine"):
        build_schedule(build_optimizer(tiny_run().model.parameters(), COSINE), COSINE)
    with pytest.raises(ArgumentError, match="steps must be empty beside warm-up"):
        replace(COSINE, steps=(2,), factors=(0.1,))
