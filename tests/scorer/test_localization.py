"""Localization rates on scenes where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from transferkit.scorer import LocalizationMeter

NAMES = ("background", "cat", "dog", "zebra")


def tiles(size: int = 40, side: int = 10) -> torch.Tensor:
    """Every side x side tile of a square image, four to each pixel except near the rim."""
    starts = torch.arange(0, size - side + 1, side // 2).double()
    y, x = torch.meshgrid(starts, starts, indexing="ij")
    return torch.stack([x, y, x + side, y + side], dim=-1).reshape(-1, 4)


def probs_for(boxes: torch.Tensor, k: int, target: tuple[float, ...]) -> torch.Tensor:
    """Probability 0.9 for class k in the tiles inside ``target``, 0.1 elsewhere."""
    target_box = torch.tensor(target, dtype=torch.float64)
    inside = (boxes[:, :2] >= target_box[:2]).all(1) & (boxes[:, 2:] <= target_box[2:]).all(1)
    probs = torch.full((len(boxes), 4), 0.1)
    probs[inside, k] = 0.9
    return probs


def test_a_classifier_that_sees_the_object_points_at_it():
    meter = LocalizationMeter(NAMES)
    cat = (5.0, 20.0, 20.0, 40.0)
    objects = torch.tensor([cat], dtype=torch.float64)
    one, no = torch.tensor([1]), torch.tensor([False])
    meter.add_image(probs_for(tiles(), 1, cat), tiles(), (40, 40), objects, one, no)
    result = meter.compute()
    assert result.class_names == ("cat", "dog", "zebra")
    assert result.images == (1, 0, 0)
    cat_rates = result.rates[0]
    assert (cat_rates.pointing, cat_rates.corloc) == (1, 1)
    assert cat_rates.chance == pytest.approx(15 * 20 / 1600)
    assert (cat_rates.center, cat_rates.whole_image) == (0, 0)
    assert math.isnan(result.rates[1].pointing)
    assert result.mean() == cat_rates
    # Looking elsewhere halves the rate.
    meter.add_image(probs_for(tiles(), 1, (20, 0, 40, 15)), tiles(), (40, 40), objects, one, no)
    assert meter.compute().rates[0].pointing == 0.5


def test_only_images_with_an_object_that_is_not_difficult_count_but_any_may_be_found():
    meter = LocalizationMeter(NAMES)
    dog = (0.0, 0.0, 20.0, 20.0)
    objects = torch.tensor([dog, (30, 30, 40, 40)], dtype=torch.float64)
    probs, twice = probs_for(tiles(), 2, dog), torch.tensor([2, 2])
    meter.add_image(probs, tiles(), (40, 40), objects, twice, torch.tensor([True, True]))
    assert meter.compute().images == (0, 0, 0)
    assert math.isnan(meter.compute().mean().pointing)
    meter.add_image(probs, tiles(), (40, 40), objects, twice, torch.tensor([1, 0]))
    assert meter.compute().images == (0, 1, 0)
    assert meter.compute().rates[1].pointing == 1
    assert meter.compute().rates[1].chance == pytest.approx(500 / 1600)


def test_tolerance_widens_the_objects():
    near = torch.tensor([[24.0, 24, 30, 30]], dtype=torch.float64)
    arguments = (tiles(), (40, 40), near, torch.tensor([1]), torch.tensor([False]))
    rates = []
    for tolerance in (0, 5):
        meter = LocalizationMeter(NAMES, tolerance=tolerance)
        meter.add_image(torch.full((len(tiles()), 4), 0.5), *arguments)
        rates.append(meter.compute().rates[0])
    assert [r.center for r in rates] == [0, 1]
    assert rates[0].chance == pytest.approx(36 / 1600)
    assert rates[1].chance == pytest.approx(256 / 1600)


def test_pointing_at_random_comes_to_the_chance():
    generator = torch.Generator().manual_seed(0)
    meter = LocalizationMeter(NAMES)
    for _ in range(300):
        probs = torch.rand(len(tiles()), 4, generator=generator)
        start = 20.0 * torch.randint(2, (1, 2), generator=generator).double()  # one of the quadrants
        objects = torch.cat([start, start + 20], dim=1)
        meter.add_image(probs, tiles(), (40, 40), objects, torch.tensor([1]), torch.tensor([False]))
    rates = meter.compute().rates[0]
    assert abs(rates.pointing - rates.chance) < 0.1


def test_prints_and_stores():
    meter = LocalizationMeter(NAMES)
    meter.add_image(
        torch.rand(len(tiles()), 4),
        tiles(),
        (40, 40),
        torch.tensor([[0.0, 0, 40, 40]]),
        torch.tensor([3]),
        torch.tensor([False]),
    )
    result = meter.compute()
    assert str(result).splitlines()[0].split() == [
        "class",
        "images",
        "pointing",
        "chance",
        "center",
        "CorLoc",
        "whole",
        "image",
    ]
    assert str(result).splitlines()[4].split()[:5] == ["zebra", "*", "1", "100.00", "100.00"]
    assert result.to_markdown().count("\n") == 6
    assert result.to_dict()["classes"][0]["pointing"] is None
    assert result.to_dict()["mean"]["chance"] == 1
