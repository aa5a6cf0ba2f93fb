"""evaluate and its result: every rule, what is left out, and every way to print it."""

from __future__ import annotations

import json
import math

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.scorer import (
    ALL_RULES,
    NEON,
    VOC2007,
    VOC2010,
    APRule,
    average_precision,
    evaluate,
    evaluation,
    read_devkit_results,
)

NAMES = ["background", "cat", "dog", "zebra"]


@pytest.fixture
def case():
    """40 images with 3 classes and background; no zebra anywhere."""
    generator = torch.Generator().manual_seed(5)
    present = torch.rand(40, 4, generator=generator) < 0.4
    present[:, [0, 3]] = False
    difficult = present & (torch.rand(40, 4, generator=generator) < 0.3)
    scores = torch.rand(40, 4, generator=generator, dtype=torch.float64) + 0.3 * present
    return scores, present, difficult


def test_every_rule_is_average_precision_with_its_settings(case):
    scores, present, difficult = case
    result = evaluate(scores, present, difficult, class_names=NAMES)
    assert result.class_names == ("cat", "dog", "zebra")
    assert set(result.ap) == set(ALL_RULES)
    settings = {
        "positive": {"targets": present},
        "negative": {"targets": present & ~difficult},
        "ignored": {"targets": present & ~difficult, "ignore": difficult},
    }
    for rule in ALL_RULES:
        chosen = {name: mask[:, 1:] for name, mask in settings[rule.difficult].items()}
        expected = average_precision(
            scores[:, 1:], interpolation=rule.interpolation, minimum_score=rule.minimum_score, **chosen
        )
        torch.testing.assert_close(torch.tensor(result.ap[rule]).double(), expected, equal_nan=True)
        assert result.mean_ap(rule) == pytest.approx(expected.nanmean().item())
    assert result.positives == tuple((present & ~difficult).sum(0)[1:].tolist())
    assert result.difficult == tuple(difficult.sum(0)[1:].tolist())


def test_difficult_objects_may_or_may_not_be_among_those_present(case):
    scores, present, difficult = case
    with_them = evaluate(scores, present, difficult, class_names=NAMES)
    without = evaluate(scores, present & ~difficult, difficult, class_names=NAMES)
    assert str(with_them) == str(without)


def test_what_has_no_positives_is_left_out_visibly(case):
    scores, present, difficult = case
    result = evaluate(scores, present, difficult, class_names=NAMES)
    assert result.without_positives == ("zebra",)
    assert math.isnan(result.ap[VOC2010][2])
    assert "left out of the mean: zebra" in str(result)
    nothing = evaluate(scores, torch.zeros_like(present), class_names=NAMES)
    assert math.isnan(nothing.mean_ap())
    assert nothing.to_dict()["mean_ap"] is None


def test_prints_as_table_markdown_and_json(case):
    scores, present, difficult = case
    result = evaluate(scores, present, difficult, class_names=NAMES, rule=VOC2007, bootstrap=50)
    lines = str(result).splitlines()
    assert lines[0].split()[:6] == ["class", "images", "difficult", "11-point", "all-points", "none"]
    assert lines[0].endswith("95% interval")
    assert lines[2].split()[0] == "cat"
    assert f"{100 * result.mean_ap(VOC2007):.2f}" in lines[6]
    assert all(len(line) == len(lines[0]) for line in lines[:7])
    markdown = result.to_markdown().splitlines()
    assert markdown[1] == "| :-- | --: | --: | --: | --: | --: | --: |"
    assert markdown[2].startswith("| cat |")
    read = json.loads(result.to_json())
    assert read["rule"] == "11-point, difficult ignored"
    assert read["mean_ap_by_rule"]["all-points, difficult positive, scores from 1e-06"] == result.mean_ap(NEON)
    assert read["classes"][2] == {
        "name": "zebra",
        "positives": 0,
        "difficult": 0,
        "ap": {str(rule): None for rule in ALL_RULES},
        "interval": [None, None],
    }


def test_its_devkit_files_give_the_same_result(case, tmp_path):
    scores, present, difficult = case
    ids = [f"{n:06}" for n in range(40)]
    scores[4, 1] = -math.inf
    result = evaluate(scores, present, difficult, class_names=NAMES, image_ids=ids)
    files = result.write_devkit(tmp_path / "Main", image_set="val", competition="comp2")
    assert [file.name for file in files] == [f"comp2_cls_val_{name}.txt" for name in NAMES[1:]]
    assert sorted(tmp_path.glob("Main/*")) == sorted(files)
    read = read_devkit_results(
        tmp_path / "Main", image_ids=ids, class_names=NAMES, image_set="val", competition="comp2"
    )
    again = evaluate(read, present, difficult, class_names=NAMES, image_ids=ids)
    assert again.to_json() == result.to_json()
    with pytest.raises(ArgumentError, match=r"give evaluate\(image_ids=...\)"):
        evaluate(scores, present, class_names=NAMES).write_devkit(tmp_path)


def test_a_mean_over_other_classes_says_so(case):
    scores, present, difficult = case
    difficult[:, 2] |= present[:, 2]  # every dog is difficult
    text = str(evaluate(scores, present, difficult, class_names=NAMES))
    assert "left out of the mean: dog, zebra" in text
    assert "mean with difficult positive, over 2 classes: " in text
    assert "mean with difficult negative: " in text


def test_a_rule_of_ones_own_is_evaluated_and_leads(case):
    scores, present, difficult = case
    rule = APRule("none", "positive", minimum_score=0.5)
    result = evaluate(scores, present, difficult, class_names=NAMES, rule=rule)
    assert result.mean_ap() == result.mean_ap(rule)
    assert "none" in str(result).splitlines()[0]
    with pytest.raises(ArgumentError, match="rule must be one of those evaluated"):
        result.mean_ap(APRule(minimum_score=0.123))
    with pytest.raises(ArgumentError, match="difficult must be one of 'ignored'"):
        APRule("none", "hard")


def test_bootstrap_intervals_hold_the_value_and_repeat(case):
    scores, present, difficult = case
    first, again = (
        evaluate(scores, present, difficult, class_names=NAMES, bootstrap=200, seed=3) for _ in range(2)
    )
    other = evaluate(scores, present, difficult, class_names=NAMES, bootstrap=200, seed=4)
    assert str(first) == str(again) != str(other)
    assert first.mean_interval.low < first.mean_ap() < first.mean_interval.high
    for c in range(2):
        assert 0 <= first.intervals[c].low < first.ap[VOC2010][c] < first.intervals[c].high <= 1


@pytest.mark.parametrize("interpolation", ["all-points", "11-point", "none"])
def test_resampling_equals_repeating_the_images(case, interpolation):
    from transferkit.scorer.ap_rules import ranking_ap

    scores, present, difficult = (tensor[:, 1:3] for tensor in case)
    rule = APRule(interpolation)
    weights = torch.randint(40, (40,), generator=torch.Generator().manual_seed(1)).bincount(minlength=40)
    images = torch.arange(40).repeat_interleave(weights)
    resampled = ranking_ap(rule.rank(scores, present, difficult).resampled(weights), interpolation)
    repeated = ranking_ap(rule.rank(scores[images], present[images], difficult[images]), interpolation)
    torch.testing.assert_close(resampled, repeated, rtol=1e-12, atol=0)


def test_says_everything_that_is_wrong_at_once(case):
    scores, present, difficult = case
    with pytest.raises(ArgumentError) as caught:
        evaluate(scores, present[:9], difficult[:, :2], class_names=NAMES[:2], image_ids=["a"] * 40)
    for part in (
        "targets must",
        "difficult must",
        "class_names must be 4 distinct",
        "image_ids must be 40 distinct",
    ):
        assert part in str(caught.value)
    scores[7, 2] = math.nan
    with pytest.raises(ArgumentError, match="image 000007, class dog"):
        evaluate(scores, present, difficult, class_names=NAMES, image_ids=[f"{i:06}" for i in range(40)])


def test_classes_that_are_ranked_one_after_the_other_have_the_same_ap(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, present = torch.rand(30, 5).round(decimals=1), torch.rand(30, 5) < 0.3
    names = ["background", "a", "b", "c", "d"]
    together = evaluate(scores, present, class_names=names, bootstrap=5)
    for at_once in (1, 60):
        monkeypatch.setattr(evaluation, "_AT_ONCE", at_once)
        assert str(evaluate(scores, present, class_names=names, bootstrap=5)) == str(together)
