"""Average precision against scikit-learn, against slow loops from the definitions, and against tables by hand.

TRANSFERKIT_CASES sets the number of random cases; 10,000 take about a minute on one core.
"""

from __future__ import annotations

import math
import os
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from transferkit.errors import ArgumentError
from transferkit.scorer import average_precision
from transferkit.scorer.ap_rules import ALL_RULES

CASES = int(os.environ.get("TRANSFERKIT_CASES", "1000"))
INF = math.inf


def devkit_order(scores: list[float], truth: list[int]) -> list[int]:
    """Truth (1 positive, -1 negative, 0 ignored) in the order of VOCevalcls.m: a stable sort."""
    return [truth[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]


def precision_recall(ranked: list[int]) -> list[tuple[Fraction | None, Fraction]]:
    """Precision (None for 0/0) and recall at every rank, in exact fractions."""
    positives = ranked.count(1)
    points, hits, alarms = [], 0, 0
    for t in ranked:
        hits += t > 0
        alarms += t < 0
        points.append((Fraction(hits, hits + alarms) if hits + alarms else None, Fraction(hits, positives)))
    return points


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.float64])
def test_zeros_and_ones_are_false_and_true(dtype):
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(40, 3, generator=generator)
    targets, ignore = torch.rand(2, 40, 3, generator=generator) > 0.7
    as_numbers = average_precision(scores, targets.to(dtype), ignore=ignore.to(dtype))
    assert torch.equal(as_numbers, average_precision(scores, targets, ignore=ignore))
    assert torch.equal(average_precision(scores.numpy(), targets.numpy()), average_precision(scores, targets))
    for rule in ALL_RULES:
        ap = rule.average_precision(scores, targets.to(dtype), ignore.to(dtype))
        assert torch.equal(ap, rule.average_precision(scores, targets, ignore))


def eleven_points(scores: list[float], truth: list[int]) -> float:
    """VOCevalcls.m of 2007, with thresholds that are exact."""
    points = precision_recall(devkit_order(scores, truth))
    total = Fraction(0)
    for k in range(11):
        reached = [p for p, r in points if p is not None and r >= Fraction(k, 10)]
        total += max(reached, default=Fraction(0)) / 11
    return float(total)


def all_points(scores: list[float], truth: list[int]) -> float:
    """VOCap.m of 2010: sentinels, a running maximum from the right, the area of the steps."""
    points = precision_recall(devkit_order(scores, truth))
    recall = [Fraction(0), *(r for _, r in points), Fraction(1)]
    precision = [Fraction(0), *(p if p is not None else Fraction(0) for p, _ in points), Fraction(0)]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = range(1, len(recall))
    return float(sum((recall[i] - recall[i - 1]) * precision[i] for i in steps if recall[i] != recall[i - 1]))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth of one class: some with many ties, no or only positives, ignored and unscored images."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    levels = rng.choice([2, 5, 1000])
    scores = rng.integers(0, levels, count) / levels - rng.choice([0, 0.5])
    if rng.random() < 0.3:
        scores[rng.random(count) < 0.2] = -np.inf
    share = rng.choice([0.0, 0.05, 0.3, 0.9, 1.0])
    truth = np.where(rng.random(count) < share, 1, -1)
    if rng.random() < 0.5:
        truth[rng.random(count) < rng.choice([0.1, 0.5])] = 0
    return scores, truth


def ours(scores: np.ndarray, truth: np.ndarray, interpolation: str) -> float:
    ignore = torch.from_numpy(truth == 0)
    # What stands in targets where an image is ignored must not matter.
    targets = torch.from_numpy(truth > 0) | (ignore & (torch.arange(len(truth)) % 2 == 0))
    result = average_precision(torch.from_numpy(scores), targets, ignore=ignore, interpolation=interpolation)
    return result.item()


def test_random_cases_against_loops_and_scikit_learn():
    seen = dict.fromkeys(["no positives", "only positives", "ignored", "unscored", "ties"], 0)
    worst = 0.0
    for seed in range(CASES):
        scores, truth = random_case(seed)
        seen["no positives"] += not (truth > 0).any()
        seen["only positives"] += bool((truth > 0).all())
        seen["ignored"] += bool((truth == 0).any())
        seen["unscored"] += bool(np.isinf(scores).any())
        seen["ties"] += len(set(scores)) < len(scores)
        found = [ours(scores, truth, i) for i in ("all-points", "11-point", "none")]
        if not (truth > 0).any():
            assert all(map(math.isnan, found))
            continue
        kept = truth != 0
        # scikit-learn takes no -inf: anything below all others is the same to a ranking.
        finite = np.where(np.isinf(scores), -9, scores)[kept]
        expected = [
            all_points(scores.tolist(), truth.tolist()),
            eleven_points(scores.tolist(), truth.tolist()),
            average_precision_score(truth[kept] > 0, finite),
        ]
        worst = max(worst, *(abs(a - b) for a, b in zip(found, expected, strict=True)))
    print(f"{CASES} cases, largest difference {worst:.1e}, of them {seen}")
    assert worst < 1e-12
    assert min(seen.values()) > CASES // 50


# By hand, after VOCevalcls.m and VOCap.m: scores, truth, 11-point, all-points.
BY_HAND = {
    # ranks  + - + : P 1, 1/2, 2/3; R 1/2, 1/2, 1. Recalls 0 to .5 have 1 (6 of them), .6 to 1 have 2/3 (5).
    "hit, alarm, hit": ([0.9, 0.8, 0.7], [1, -1, 1], (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
    # The ignored image in front moves nothing.
    "ignored first": ([1.0, 0.9, 0.8, 0.7], [0, 1, -1, 1], (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
    # The unscored positive comes last: P 1, 1/2, 2/3 with the file's missing image third.
    "unscored last": ([0.9, 0.8, -INF], [1, -1, 1], (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
    # Among equals the order of the image set decides: negative first ...
    "tie, negative first": ([0.5, 0.5], [-1, 1], 1 / 2, 1 / 2),
    # ... or positive first.
    "tie, positive first": ([0.5, 0.5], [1, -1], 1.0, 1.0),
    # Of 10 positives 3 come first, then an alarm, then the rest: 3 of 10 do reach recall 0.3, with precision 1;
    # from 0.4 on the best is 10/11, at the end.
    "recall 0.3 is reached": (
        [20 - i for i in range(11)],
        [1] * 3 + [-1] + [1] * 7,
        (4 + 7 * 10 / 11) / 11,
        (3 + 7 * 10 / 11) / 10,
    ),
    "every image positive": ([0.3, 0.1, 0.2], [1, 1, 1], 1.0, 1.0),
    "worst ranking": ([0.9, 0.8, 0.1], [-1, -1, 1], 1 / 3, 1 / 3),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_tables_by_hand(case):
    scores, truth, eleven, area = BY_HAND[case]
    assert ours(np.array(scores), np.array(truth), "11-point") == pytest.approx(eleven, abs=1e-15)
    assert ours(np.array(scores), np.array(truth), "all-points") == pytest.approx(area, abs=1e-15)


def test_scores_under_the_minimum_count_neither_way():
    scores = torch.tensor([0.9, 1e-7, 0.0, 0.5], dtype=torch.float64)
    targets = torch.tensor([True, True, False, False])
    # Of two positives one is found, at precision 1; the other is never retrieved.
    assert average_precision(scores, targets, minimum_score=1e-6).item() == 0.5
    assert average_precision(scores, targets).item() == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(scores, targets, minimum_score=2.0).item() == 0.0


@given(seed=st.integers(0, 10**6), interpolation=st.sampled_from(["all-points", "11-point", "none"]))
@settings(deadline=None, max_examples=60)
def test_properties(seed, interpolation):
    scores, truth = (torch.from_numpy(a) for a in random_case(seed))
    targets, ignore = truth > 0, truth == 0
    arguments = {"ignore": ignore, "interpolation": interpolation}
    ap = average_precision(scores, targets, **arguments)
    if not (targets & ~ignore).any():
        assert ap.isnan()
        return
    assert 0 < ap <= 1 + 1e-12
    # Any monotonic scale; several classes at once equal each alone; a perfect ranking scores 1.
    torch.testing.assert_close(average_precision(scores.exp() * 3 - 7, targets, **arguments), ap)
    both = average_precision(
        torch.stack([scores, -scores], 1).nan_to_num(neginf=-9),
        torch.stack([targets, targets], 1),
        ignore=torch.stack([ignore, ignore], 1),
        interpolation=interpolation,
    )
    torch.testing.assert_close(both[0], ap, rtol=1e-12, atol=0)
    perfect = average_precision(truth.double(), targets, **arguments)
    torch.testing.assert_close(perfect, torch.ones_like(perfect))


def test_on_the_device(device):
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], device=device)
    targets = torch.tensor([[True, False], [False, False], [True, False]])
    ap = average_precision(scores, targets)
    assert ap.device.type == device.type
    assert ap[0].item() == pytest.approx(5 / 6)
    assert ap[1].isnan()


@pytest.mark.parametrize(
    ("scores", "targets", "arguments", "message"),
    [
        (torch.rand(3), torch.tensor([True, False]), {}, r"targets must be .* \(3,\), got \(2,\)"),
        (torch.rand(3), torch.tensor([1, 0, 2]), {}, r"targets must be .* 0 and 1, got 1 other values: 2"),
        (torch.rand(2), torch.tensor([1.0, 0.3]), {}, "targets must be true or false, or 0 and 1"),
        (torch.rand(2), torch.tensor([1.0, math.nan]), {}, "targets must be true or false, or 0 and 1"),
        (torch.rand(2), torch.tensor([1, -1]), {}, "targets must be true or false, or 0 and 1"),
        (torch.rand(2), torch.ones(2), {"ignore": torch.full((2,), 0.5)}, "ignore must be true or false"),
        (
            torch.rand(3),
            torch.ones(3).bool(),
            {"ignore": torch.zeros(2).bool()},
            "ignore must be of the scores' shape",
        ),
        (torch.tensor([0.1, math.nan]), torch.ones(2).bool(), {}, "must not be NaN, got 1 NaN"),
        (torch.zeros(0), torch.zeros(0).bool(), {}, "N >= 1"),
        (torch.rand(2), torch.ones(2).bool(), {"interpolation": "11-points"}, "did you mean '11-point'"),
    ],
)
def test_refuses_what_cannot_be_ranked(scores, targets, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        average_precision(scores, targets, **arguments)


def test_arrays_of_numpy_are_taken_as_they_are():
    scores = np.array([0.9, 0.8, 0.7], ">f8")
    scores.setflags(write=False)
    assert float(average_precision(scores, np.array([1, 0, 1]))) == pytest.approx(5 / 6)
    with pytest.raises(ArgumentError, match="scores must be a tensor, or numbers"):
        average_precision("best", [True])
