"""Probabilities and thresholds: against scikit-learn and slow loops, on photos drawn from known curves, and kept."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from transferkit.display import as_json
from transferkit.errors import ArgumentError, CheckpointError
from transferkit.scorer import Calibration, calibrate
from transferkit.scorer.calibration import _newton, f1_cut, precision_cut

NAMES = ("background", "cat", "dog", "zebra")
OFFSETS, SLOPES = torch.tensor([2.0, 4.0, -1.0]), torch.tensor([1.0, 1.5, 1.2])


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, targets drawn from logistic curves of their logarithms, and those curves; zebras are rare."""
    generator = torch.Generator().manual_seed(seed)
    logs = -6 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    probs = torch.sigmoid(OFFSETS + SLOPES * logs)
    targets = torch.rand(count, 3, generator=generator) < probs
    nothing = torch.zeros(count, 1)
    return torch.cat([nothing, logs.exp()], 1), torch.cat([nothing.bool(), targets], 1), probs


def test_the_probabilities_are_those_that_the_photos_were_drawn_from():
    scores, targets, probs = drawn(4000)
    found = calibrate(scores, targets, class_names=NAMES).probs(scores)
    assert found[:, 0].isnan().all()
    assert (found[:, 1:] - probs).abs().max() < 0.06


def test_a_curve_fits_as_scikit_learn_fits_it():
    scores, targets, _ = drawn(300)
    x, y = scores[:, 1:].log(), targets[:, 1:].double()
    deviation = torch.tensor([1e4, 0.5], dtype=torch.float64)  # scikit-learn leaves the offset free
    found = _newton(x, y, torch.ones_like(y), torch.zeros(2, dtype=torch.float64), deviation)
    for c in range(3):
        oracle = LogisticRegression(C=0.25, tol=1e-8).fit(x[:, c : c + 1].numpy(), y[:, c].numpy())
        assert found[c].tolist() == pytest.approx([oracle.intercept_[0], oracle.coef_[0, 0]], abs=1e-3)


def test_a_class_without_photos_is_near_all_classes_together():
    scores, targets, _ = drawn(60)
    targets[:, 3] = False
    calibration = calibrate(scores, targets, class_names=NAMES)
    assert 0.3 < calibration.slopes[2] < 2
    assert math.isfinite(calibration.thresholds[2])


def test_what_is_ignored_changes_nothing():
    scores, targets, _ = drawn(80)
    ignore = torch.zeros_like(targets)
    ignore[:9, 1] = True
    other = targets.clone()
    other[:9, 1] ^= True
    first, second = (calibrate(scores, t, class_names=NAMES, ignore=ignore) for t in (targets, other))
    assert (first.thresholds, first.offsets) == (second.thresholds, second.offsets)


def test_unscored_and_zero_scores_have_probabilities():
    scores, targets, _ = drawn(80)
    scores[3, 1], scores[4, 1] = -math.inf, 0.0
    calibration = calibrate(scores, targets, class_names=NAMES)
    probs, labels = calibration.probs(scores), calibration.labels(scores)
    assert probs[3, 1] == 0
    assert not labels[3, 1]
    assert 0 < probs[4, 1] <= probs[torch.arange(80) != 3, 1].min()
    assert not labels[:, 0].any()


probabilities = st.lists(st.integers(1, 99).map(lambda n: n / 100), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(probabilities)
def test_no_cut_expects_a_better_f1(values):
    probs = torch.tensor(values, dtype=torch.float64)

    def expected(cut: float) -> float:
        said = probs[probs >= cut]
        return float(2 * said.sum() / (len(said) + probs.sum()))

    best = max(map(expected, values))
    assert expected(f1_cut(probs)) == pytest.approx(best, rel=0.02 if len(set(values)) < len(values) else 1e-9)


@settings(max_examples=200, deadline=None)
@given(probabilities, st.integers(0, 2**12), st.sampled_from([0.5, 0.7, 0.9]))
def test_the_lowest_cut_that_is_precise_enough(values, bits, precision):
    probs = torch.tensor(values, dtype=torch.float64)
    targets = torch.tensor([bool(bits >> n & 1) for n in range(len(values))])

    def limit(cut: float) -> float:
        said = probs >= cut
        r, n, z = int((targets & said).sum()), int(said.sum()), 0.5
        return (r + z * z / 2 - z * math.sqrt(r * (n - r) / n + z * z / 4)) / (n + z * z)

    precise = [value for value in values if limit(value) >= precision]
    cut = precision_cut(probs, targets, precision)
    if not precise:
        assert cut == math.inf
    else:
        assert (probs >= cut).tolist() == (probs >= min(precise)).tolist()


@pytest.mark.parametrize("precision", [0.8, 0.9])
def test_a_precision_asked_for_is_reached_on_new_photos(precision):
    right = said = 0
    for seed in range(8):
        scores, targets, _ = drawn(150, seed)
        calibration = calibrate(scores, targets, class_names=NAMES, criterion=precision)
        scores, targets, _ = drawn(2000, seed + 100)
        labels = calibration.labels(scores)
        right, said = right + int((labels & targets).sum()), said + int(labels.sum())
    assert precision - 0.015 < right / said < precision + 0.06


def test_equal_scores_say_as_much_as_they_can():
    scores, targets = torch.full((20, 2), 0.5), torch.arange(20)[:, None] < torch.tensor([0, 5])
    calibration = calibrate(scores, targets, class_names=NAMES[:2])
    assert calibration.probs(torch.tensor([[0.0, 0.51]]))[0, 1] == pytest.approx(0.25, abs=0.02)


def test_a_precision_out_of_reach_says_nothing_and_says_so():
    scores, targets, _ = drawn(40)
    calibration = calibrate(scores, targets, class_names=NAMES).with_thresholds(0.999)
    assert not calibration.labels(scores).any()
    assert "ask for less precision" in str(calibration)
    assert calibration.with_thresholds("f1").labels(scores).any()


def test_is_kept_as_plain_values():
    scores, targets, _ = drawn(50)
    scores[0, 1] = -math.inf
    ignore = torch.zeros_like(targets)
    ignore[2, 2] = True
    calibration = calibrate(scores, targets, class_names=NAMES, ignore=ignore, criterion=0.8)
    again = Calibration.from_dict(json.loads(as_json(calibration.to_dict())))
    assert (again.thresholds, str(again)) == (calibration.thresholds, str(calibration))
    torch.testing.assert_close(again.probs(scores), calibration.probs(scores), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", [[0.1]]),
        ("scores", [[0, 0.1, "a", 0.2]]),
        ("targets", [[0, 2, 0, 0]] * 20),
        ("targets", [[0, 0.5, 0, 0]] * 20),
        ("slopes", [1.0, -1.0, 1.0]),
        ("offsets", [1.0]),
        ("floor", 0.0),
        ("criterion", "f2"),
        ("criterion", 1.5),
        ("class_names", ["cat", "dog"]),
        ("class_names", None),
        ("floor", ...),
    ],
)
def test_a_damaged_one_is_refused(name, value):
    scores, targets, _ = drawn(20)
    values = calibrate(scores, targets, class_names=NAMES).to_dict()
    values = {k: v for k, v in (values | {name: value}).items() if v is not ...}
    with pytest.raises(CheckpointError, match="calibrate again"):
        Calibration.from_dict(values)


def test_refuses_what_does_not_fit_all_at_once():
    scores, targets, _ = drawn(20)
    with pytest.raises(ArgumentError, match=r"targets must.*class_names must.*scores must be 0 or more"):
        calibrate(scores - 1, targets[:9], class_names=["cat"] * 4)
    with pytest.raises(ArgumentError, match="targets must be true for some photo"):
        calibrate(scores, targets & False, class_names=NAMES)
    with pytest.raises(ArgumentError, match="criterion must be 'f1'"):
        calibrate(scores, targets, class_names=NAMES, criterion=2.0)
    calibration = calibrate(scores, targets, class_names=NAMES)
    with pytest.raises(ArgumentError, match=r"scores must be of shape \(N, 4\)"):
        calibration.labels(scores[:, :2])
