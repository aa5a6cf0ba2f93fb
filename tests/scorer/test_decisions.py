"""Yes or no counted by slow loops; Wilson's interval by what defines it; nothing said of fewer than ten photos."""

from __future__ import annotations

import csv
import io
import math
from statistics import NormalDist

import pytest
import torch

from transferkit.errors import ArgumentError
from transferkit.scorer import calibrate, evaluate
from transferkit.scorer.decisions import reliability
from transferkit.scorer.result import wilson

from .test_calibration import NAMES, drawn


@pytest.fixture
def case():
    """60 photos with 3 classes, some difficult; fewer than ten show a zebra."""
    scores, targets, _ = drawn(60, seed=3)
    targets[:, 3] = torch.arange(60) < 6
    difficult = targets & (torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < 0.1)
    return scores, targets, difficult, calibrate(scores, targets, class_names=NAMES, ignore=difficult)


def test_counts_are_those_of_a_loop(case):
    scores, targets, difficult, calibration = case
    found = evaluate(scores, targets, difficult, class_names=NAMES, calibration=calibration).decisions
    labels = calibration.labels(scores)
    for c in range(1, 4):
        counted = [n for n in range(60) if not difficult[n, c]]
        said = [n for n in counted if labels[n, c]]
        right = sum(bool(targets[n, c]) for n in said)
        shown = sum(bool(targets[n, c]) for n in counted)
        one = found.classes[c - 1]
        assert (one.photos, one.said, one.right, one.positives) == (len(counted), len(said), right, shown)
        assert one.precision == right / len(said) or shown < 10
        for other in range(1, 4):
            wrong = sum(bool(targets[n, other] and not difficult[n, other] and not targets[n, c]) for n in said)
            assert found.confused[other - 1, c - 1] == wrong
    cat = found.classes[0]
    assert cat.f1 == pytest.approx(2 / (1 / cat.precision + 1 / cat.recall))


def test_fewer_than_ten_positives_say_nothing(case):
    scores, targets, difficult, calibration = case
    result = evaluate(scores, targets, difficult, class_names=NAMES, calibration=calibration, bootstrap=20)
    found = result.decisions
    zebra = found.classes[2]
    assert 0 < zebra.positives < 10
    assert all(map(math.isnan, (zebra.precision, zebra.recall, zebra.f1, zebra.interval("recall").low)))
    assert math.isnan(result.intervals[2].low)
    for text in (str(found), str(result)):
        assert "zebra *" in text
        assert "cat *" not in text
        assert "* fewer than 10 photos" in text
    assert not [row for row in found.most_confused() if row[0] == "zebra"]


@pytest.mark.parametrize(("right", "count"), [(7, 10), (0, 12), (12, 12), (450, 500)])
def test_wilson_limits_are_the_shares_that_lie_z_deviations_away(right, count):
    z = NormalDist().inv_cdf(0.975)
    interval = wilson(right, count)
    for limit in (interval.low, interval.high):
        assert abs(right / count - limit) == pytest.approx(z * math.sqrt(limit * (1 - limit) / count), abs=1e-7)
    assert math.isnan(wilson(3, 9).low)


def test_three_photos_in_order_are_no_certainty():
    names = ["background", "few", "many"]
    targets = torch.zeros(40, 3, dtype=torch.bool)
    targets[:3, 1] = targets[:12, 2] = True
    result = evaluate(targets.double(), targets, class_names=names, bootstrap=50)
    assert result.mean_ap() == 1
    assert [row[-1] for row in result.table()[1:3]] == ["-", "75.75 to 100.00"]
    assert result.mean_interval.low < 0.9


def test_true_probabilities_come_true():
    _, targets, probs = drawn(20000)
    curve = reliability(probs.reshape(-1), targets[:, 1:].reshape(-1))
    assert sum(curve.counts) == 60000
    assert curve.error < 0.01
    assert reliability(probs.reshape(-1) ** 2, targets[:, 1:].reshape(-1)).error > 0.04
    assert math.isnan(reliability(probs[:0, 0], targets[:0, 0]).error)


def test_tables_of_classes_and_photos_are_read_back(case):
    scores, targets, difficult, calibration = case
    ids = [f"a,{n}" for n in range(60)]
    result = evaluate(scores, targets, difficult, class_names=NAMES, image_ids=ids, calibration=calibration)
    photos = list(csv.DictReader(io.StringIO(result.scores_csv())))
    assert [row["image"] for row in photos] == ids
    assert [float(row["cat"]) for row in photos] == scores[:, 1].tolist()
    assert [float(row["dog probability"]) for row in photos] == calibration.probs(scores)[:, 2].tolist()
    assert ["cat" in row["said"].split(";") for row in photos] == calibration.labels(scores)[:, 1].tolist()
    assert ["dog" in row["shown"].split(";") for row in photos] == (targets & ~difficult)[:, 2].tolist()
    classes = list(csv.DictReader(io.StringIO(result.decisions.to_csv())))
    assert [row["name"] for row in classes] == ["cat", "dog", "zebra"]
    assert (
        float(classes[0]["precision low"])
        < float(classes[0]["precision"])
        < float(classes[0]["precision high"])
    )
    assert classes[2]["precision"] == classes[2]["recall low"] == ""
    plain = result.to_dict()["decisions"]
    assert plain["classes"][0]["right"] == int(classes[0]["right"])
    assert plain["classes"][2]["f1"] is None


def test_a_calibration_of_other_classes_is_refused(case):
    scores, targets, _, calibration = case
    with pytest.raises(ArgumentError, match="class_names must be those of the calibration"):
        evaluate(scores, targets, class_names=("background", "a", "b", "c"), calibration=calibration)
