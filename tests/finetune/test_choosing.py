"""What is chosen on held-out photos is what a plain loop over them would choose, and training is left as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.features.scenes import GRID, Scenes
from transferkit.alexnet import AlexNet
from transferkit.annotated import Presence
from transferkit.datasets import presence_of
from transferkit.errors import ArgumentError
from transferkit.features import FeatureCache
from transferkit.finetune import (
    AS_THEY_ARE,
    NEON2016,
    Optimization,
    Run,
    build_optimizer,
    build_schedule,
    choose_on_held_out,
    fit_on_features,
    frozen_features,
    score_images,
)
from transferkit.optimization import EarlyStopping, HeldOutChoice, WeightAverage, hold_out
from transferkit.preprocessing import IMAGENET
from transferkit.scorer import VOC2010, ImageScorer
from transferkit.transfer import before, freeze

CHOICE = HeldOutChoice(fraction=0.4, exponents=(1, 3), stopping=EarlyStopping(patience=2))
PROTOCOL = dataclasses.replace(
    NEON2016,
    grid=GRID,
    patch_size=64,
    patches_per_image=16,
    batch_size=8,
    epochs=6,
    choice=CHOICE,
    ap_rule=VOC2010,
)
RATE = Optimization(0.02, momentum=0.9, weight_decay=1e-3)


class Some(Scenes):
    """Scenes with both classes in some, and one in others."""

    def presence(self) -> Presence:
        return presence_of(
            [([1, 2][: 1 + index % 2], [False] * (1 + index % 2)) for index in range(len(self))], 3
        )


def cached(folder: Path) -> tuple[FeatureCache, nn.Module]:
    torch.manual_seed(0)
    model = AlexNet(3, channels=(4, 6, 6, 6, 4), hidden=16, drop_rate=0.0, kaiming=True)
    freeze(model, before("classifier.1"))
    optimizer = build_optimizer(model.parameters(), RATE)
    run = Run(model, optimizer, build_schedule(optimizer, RATE), IMAGENET)
    features, rest = frozen_features(run, PROTOCOL)
    cache = FeatureCache(folder, features, Some(10), grid=GRID, precision=torch.float32)
    cache.fill()
    return cache, rest


def test_it_chooses_what_a_plain_loop_finds_best(tmp_path: Path) -> None:
    cache, rest = cached(tmp_path)
    weights = {name: value.clone() for name, value in rest.state_dict().items()}
    chosen = choose_on_held_out(rest, cache, PROTOCOL, RATE, seed=3)
    assert all(torch.equal(weights[name], value) for name, value in rest.state_dict().items())

    truth = Some(10).presence()
    parts = hold_out(truth.present[:, 1:], 0.4, seed=3)
    assert chosen.photos == len(parts.held) == 4
    train, held = (torch.utils.data.Subset(cache, rows.tolist()) for rows in parts)
    optimizer = build_optimizer(rest.parameters(), RATE)
    run = Run(rest, optimizer, build_schedule(optimizer, RATE), AS_THEY_ARE)
    found = []
    for epoch in range(len(chosen.mean_aps)):
        fit_on_features(run, rest, PROTOCOL.sampler(train, mode="train", seed=3), epoch + 1)
        row = []
        for exponent in CHOICE.exponents:
            scores = score_images(
                rest, PROTOCOL.sampler(held, mode="test", seed=3), ImageScorer(4, 3, exponent), AS_THEY_ARE
            )
            of = VOC2010.average_precision(scores, truth.present[parts.held], truth.difficult_only[parts.held])
            row.append(of.nanmean().item())
        found.append(tuple(row))
    torch.testing.assert_close(torch.tensor(list(chosen.mean_aps.values())), torch.tensor(found))
    best = max(max(row) for row in found)
    assert found[chosen.epochs - 1][CHOICE.exponents.index(chosen.exponent)] == best
    assert f"{chosen.epochs} epochs, exponent {chosen.exponent:g}" in str(chosen)


def test_transferred_layers_have_their_own_rate_in_the_choice_too(tmp_path: Path) -> None:
    cache, rest = cached(tmp_path)
    slower = dataclasses.replace(RATE, transferred=0.1)
    last = list(rest.parameters())[-2:]
    one = choose_on_held_out(rest, cache, PROTOCOL, slower, transferred=last)
    every = choose_on_held_out(rest, cache, PROTOCOL, slower, transferred=rest.parameters())
    tenth = dataclasses.replace(RATE, learning_rate=0.002)
    assert every == choose_on_held_out(rest, cache, PROTOCOL, tenth)
    assert one.mean_aps != every.mean_aps


def test_it_stops_when_more_epochs_are_of_no_use_and_tests_the_averaged_weights(tmp_path: Path) -> None:
    cache, rest = cached(tmp_path)
    still = dataclasses.replace(PROTOCOL, average=WeightAverage(decay=None, start=100), epochs=9)
    chosen = choose_on_held_out(rest, cache, still, RATE)
    assert len(chosen.mean_aps) <= 9
    none = dataclasses.replace(RATE, learning_rate=1e-12)
    chosen = choose_on_held_out(rest, cache, still, none)
    assert (chosen.epochs, len(chosen.mean_aps)) == (1, 3)


def test_a_recipe_may_choose_the_exponent_alone(tmp_path: Path) -> None:
    cache, rest = cached(tmp_path)
    only = dataclasses.replace(
        PROTOCOL, choice=dataclasses.replace(CHOICE, stopping=None), epochs=2, exponent=3
    )
    chosen = choose_on_held_out(rest, cache, only, dataclasses.replace(RATE, learning_rate=1e-12))
    assert (chosen.epochs, list(chosen.mean_aps)) == (2, [2])
    best = [e for e, ap in zip((1, 3), chosen.mean_aps[2], strict=True) if ap == max(chosen.mean_aps[2])]
    assert chosen.exponent == (3 if 3 in best else best[0])
    whole = choose_on_held_out(rest, cache, only, RATE, presence=Some(10).presence())
    assert whole == choose_on_held_out(rest, cache, only, RATE)


def test_the_recipe_with_it_decided_has_nothing_left_to_choose() -> None:
    decided = PROTOCOL.decided(3, 2.0)
    assert (decided.epochs, decided.exponent, decided.choice) == (3, 2.0, None)
    assert "chosen" in str(PROTOCOL)
    assert "chosen" not in str(decided)


def test_without_a_choice_or_with_an_empty_one_it_says_so(tmp_path: Path) -> None:
    cache, rest = cached(tmp_path)
    with pytest.raises(ArgumentError, match="protocol must be one with a choice, got 'neon2016'"):
        choose_on_held_out(rest, cache, dataclasses.replace(PROTOCOL, choice=None), RATE)
    few, truth = torch.utils.data.Subset(cache, [0, 1]), Some(2).presence()
    with pytest.raises(
        ArgumentError, match="2 photos are too few to hold 10% of them out for neon2016; give more photos"
    ):
        choose_on_held_out(
            rest, few, dataclasses.replace(PROTOCOL, choice=HeldOutChoice(0.1)), RATE, presence=truth
        )
    with pytest.raises(ArgumentError, match="exponents must be positive numbers"):
        HeldOutChoice(exponents=())
    with pytest.raises(ArgumentError, match="fraction"):
        HeldOutChoice(fraction=1.0)
