"""A run trained from cached features is the run trained on pixels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.backbones import lookalikes as models
from tests.backbones.test_fold import Twice, norms, with_statistics
from tests.features.scenes import GRID, Scenes
from tests.finetune.tiny import SETTINGS
from transferkit.alexnet import AlexNet
from transferkit.features import FeatureCache, FeatureImages
from transferkit.finetune import (
    AS_THEY_ARE,
    NEON2016,
    LoopSettings,
    Run,
    build_optimizer,
    build_schedule,
    fit,
    fit_on_features,
    frozen_features,
    head_features,
    read_run,
    score_images,
)
from transferkit.heads import replace_head
from transferkit.preprocessing import IMAGENET
from transferkit.scorer import ImageScorer
from transferkit.transfer import before, by_name, freeze

PROTOCOL = dataclasses.replace(NEON2016, grid=GRID, patch_size=64, patches_per_image=16, batch_size=8)
# The layout that features are computed in; another one rounds differently.
LOOP = LoopSettings(channels_last=True)


def new_run() -> Run:
    torch.manual_seed(0)  # dropout draws from here on
    model = AlexNet(3, channels=(4, 6, 6, 6, 4), hidden=16, kaiming=True)
    frozen = freeze(model, before("classifier.1"))
    optimizer = build_optimizer(model.parameters(), dataclasses.replace(SETTINGS, learning_rate=0.01))
    return Run(model, optimizer, build_schedule(optimizer, SETTINGS), IMAGENET, frozen=frozen)


def cache_for(
    run: Run, folder: Path, precision: torch.dtype = torch.float32
) -> tuple[FeatureCache, torch.nn.Module]:
    features, rest = frozen_features(run, PROTOCOL)
    cache = FeatureCache(folder, features, Scenes(), grid=GRID, precision=precision)
    cache.fill()
    return cache, rest


def assert_same(one: Run, other: Run, **close: float) -> None:
    theirs = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        if close:
            torch.testing.assert_close(value, theirs[name], **close)
        else:
            assert torch.equal(value, theirs[name]), name


def test_in_float32_the_weights_are_bit_equal_dropout_and_all(tmp_path: Path) -> None:
    plain = new_run()
    fit(plain, PROTOCOL.sampler(Scenes(), mode="train"), 3, loop=LOOP)
    cached = new_run()
    cache, rest = cache_for(cached, tmp_path)
    calls: list[int] = []
    fit_on_features(
        cached,
        rest,
        PROTOCOL.sampler(cache, mode="train"),
        3,
        loop=LOOP,
        after_epoch=lambda run: calls.append(run.epoch),
    )
    assert_same(cached, plain)
    assert calls == [1, 2, 3]
    assert [record.loss for record in cached.history] == [record.loss for record in plain.history]


def test_in_half_precision_they_are_close(tmp_path: Path) -> None:
    plain = new_run()
    fit(plain, PROTOCOL.sampler(Scenes(), mode="train"), 2, loop=LOOP)
    cached = new_run()
    cache, rest = cache_for(cached, tmp_path, torch.float16)
    fit_on_features(cached, rest, PROTOCOL.sampler(cache, mode="train"), 2, loop=LOOP)
    assert_same(cached, plain, rtol=1e-2, atol=1e-3)


def test_a_run_goes_on_from_features_and_back(tmp_path: Path) -> None:
    plain = new_run()
    fit(plain, PROTOCOL.sampler(Scenes(), mode="train"), 3, loop=LOOP)
    mixed = new_run()
    fit(mixed, PROTOCOL.sampler(Scenes(), mode="train"), 1, loop=LOOP)
    mixed.save(tmp_path / "run.pt")
    resumed = new_run()
    resumed.restore(read_run(tmp_path / "run.pt"))
    cache, rest = cache_for(resumed, tmp_path)
    sampler = PROTOCOL.sampler(cache, mode="train")
    sampler.load_state_dict(resumed.sampler_state)
    fit_on_features(resumed, rest, sampler, 2, loop=LOOP)
    patches = PROTOCOL.sampler(Scenes(), mode="train")
    patches.load_state_dict(resumed.sampler_state)
    fit(resumed, patches, 3, loop=LOOP)
    assert_same(resumed, plain)


@pytest.mark.parametrize("method", ["exact", "shared"])
def test_scores_from_features_are_those_of_the_model(tmp_path: Path, method: str) -> None:
    run, scenes = new_run(), Scenes()
    expected = score_images(
        run.model, PROTOCOL.sampler(scenes, mode="test"), ImageScorer(5, 3), IMAGENET, loop=LOOP
    )
    features, head = head_features(run.model, IMAGENET, PROTOCOL, method=method)
    sampler = PROTOCOL.sampler(FeatureImages(scenes, features), mode="test")
    scores = score_images(head, sampler, ImageScorer(5, 3), AS_THEY_ARE, loop=LOOP)
    if method == "exact":
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    else:  # noise of single pixels, on patches of two cells a side: the hardest there is for shared maps
        assert torch.corrcoef(torch.stack([scores.flatten(), expected.flatten()]))[0, 1] > 0.8


def test_folded_features_are_the_same_with_no_norm_left() -> None:
    model = with_statistics(models.ResNet())
    replace_head(model, lambda width: torch.nn.Linear(width, 3))
    frozen = freeze(model, ~by_name("fc"))
    before_folding = norms(model)
    optimizer = build_optimizer(model.parameters(), SETTINGS)
    run = Run(model, optimizer, build_schedule(optimizer, SETTINGS), IMAGENET, frozen=frozen)
    made = [frozen_features(run, PROTOCOL, fold=fold) for fold in (False, True)]
    made += [head_features(model, IMAGENET, PROTOCOL, method="exact", fold=fold) for fold in (False, True)]
    assert [norms(features.forward.backbone) for features, _ in made] == [before_folding, 0] * 2
    assert norms(model) == before_folding > 0
    image = Scenes()[0].image
    expected, *others = (features(image, GRID(image.shape[-2:])) for features, _ in made)
    for found in others:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(isinstance(rest(expected), torch.Tensor) for _, rest in made)


def test_what_cannot_be_folded_gives_its_features_as_it_is() -> None:
    layers = (Twice(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3))
    model = with_statistics(torch.nn.Sequential(*layers))
    with pytest.warns(UserWarning, match=r"run as they are, which is slower: .* is used elsewhere") as warned:
        features, _ = head_features(model, IMAGENET, PROTOCOL, method="exact", fold=True)
    assert [warning.filename for warning in warned] == [__file__]
    assert norms(features.forward.backbone) == 1
