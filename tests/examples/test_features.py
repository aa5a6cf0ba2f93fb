"""The bundled script trains on cached features by itself, and shares maps where asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from transferkit.finetune import RECOMMENDED, read_run


@pytest.fixture
def small_recommended(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the recommended recipe one of small patches at two scales, for small scenes."""
    scales = (1, 2)
    grid = replace(RECOMMENDED.grid, scales=scales)
    small = replace(RECOMMENDED, patch_size=64, grid=grid, pyramid_scales=scales)
    monkeypatch.setitem(script.PROTOCOLS, "recommended", small)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in json.loads((folder / "metrics.json").read_text())["history"]]


def test_frozen_layers_are_cached_by_themselves_and_train_the_same(call, tmp_path: Path) -> None:
    cached = call("-e", 2, "--freeze", "features", "--results", tmp_path / "cached")
    plain = call("-e", 2, "--freeze", "features", "--results", tmp_path / "plain", "--features", "exact")
    assert cached.status == plain.status == 0, cached.err + plain.err
    assert "features of the frozen layers: " in cached.out and "features of the frozen" not in plain.out
    assert len(list((tmp_path / "cached" / "features").glob("*/*.features"))) == 10
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-2)


def test_nothing_frozen_nothing_cached(call, tmp_path: Path) -> None:
    assert "features of the frozen layers" not in call("-e", 1).out
    refused = call("-e", 1, "--features", "cached")
    assert refused.status == 2 and "trained from 'features.0' on" in refused.err


def test_a_run_goes_on_from_its_cache_which_is_found_again(call, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings = ("--freeze", "features", "--cache_dir", cache)
    assert call("-e", 2, *settings, "--save_path", tmp_path / "at_once.pt").status == 0
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert call("-e", 1, *settings, "--save_path", tmp_path / "run.pt").status == 0
    resumed = call(
        "-e", 2, "--model_file", tmp_path / "run.pt", "--save_path", tmp_path / "run.pt", "--cache_dir", cache
    )
    assert resumed.status == 0, resumed.err
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == made
    one, other = (read_run(tmp_path / name)["model"] for name in ("at_once.pt", "run.pt"))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_cache_that_does_not_fit_is_not_begun(call, tmp_path: Path) -> None:
    outcome = call("-e", 1, "--freeze", "features", "--cache_limit", 1e-6)
    assert outcome.status == 0, outcome.err
    assert "every patch goes through the whole network in every epoch: the cache at" in outcome.out
    refused = call("-e", 1, "--freeze", "features", "--cache_limit", 1e-6, "--features", "cached")
    assert refused.status == 2 and "more than its limit of 1 kB" in refused.err


def test_shared_maps_train_and_test(call, tmp_path: Path) -> None:
    outcome = call("-e", 1, "--freeze", "features", "--features", "shared", "--pyramid_scales", "1,1.4")
    assert outcome.status == 0, outcome.err
    assert read_run(tmp_path / "results" / "run.pt")["settings"]["pyramid_scales"] == (1, 1.4)
    assert "features of the frozen layers" in outcome.out
    whole = call("-e", 1, "--features", "shared")
    assert whole.status == 0, whole.err
    assert "every patch goes through the whole network" in whole.out


@pytest.mark.usefixtures("small_recommended")
def test_transferred_layers_that_the_recommended_recipe_trains_have_a_rate_of_their_own(
    call, tmp_path: Path
) -> None:
    outcome = call("--protocol", "recommended", "--freeze", "features.6", "-e", 1)
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("parameters to train") == 1
    assert "transferred layers at x0.1" in outcome.out
    groups = read_run(tmp_path / "results" / "run.pt")["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [4, 8]  # the head; two convolutions, two linear layers


@pytest.mark.usefixtures("small_recommended")
def test_the_recommended_recipe_shares_maps_and_chooses_on_held_out_photos(call, tmp_path: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "results" / "run.pt"
    outcome = call("--protocol", "recommended", "-e", 2, "--cache_dir", cache)
    assert outcome.status == 0, outcome.err
    assert "chosen on 2 held-out photos: 2 epochs, exponent" in outcome.out
    assert len(list(cache.glob("*/*.features"))) == 16  # of the photos to train on, and of those to test on
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    epochs, exponent = read_run(run)["settings"]["chosen"]
    assert epochs == len(metrics["history"]) == 2

    again = call(
        "-e", 0, "--model_file", run, "--cache_dir", cache, "--results", tmp_path / "again", plain=True
    )
    assert again.status == 0, again.err
    assert "chosen on" not in again.out and f"probability^{exponent:g}" in again.out
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["mean_ap"] == metrics["mean_ap"]
