"""ImageScorer against a loop in long double, over any split, order, rank and exponent."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transferkit.errors import ArgumentError, StateError
from transferkit.scorer import ImageScorer, PatchLog, Scorer

EXPONENTS = [1.0, 2.0, 5.0, 10.0, math.inf]


def loop(probs: Tensor, image_index: Tensor, num_images: int, exponent: float, reduction: str) -> np.ndarray:
    """The definition, one patch at a time, in long double."""
    scores = np.full((num_images, probs.shape[1]), -np.inf, dtype=np.longdouble)
    for n in range(num_images):
        patches = probs[image_index == n].numpy().astype(np.longdouble)
        if len(patches) == 0:
            continue
        for k in range(probs.shape[1]):
            if math.isinf(exponent):
                scores[n, k] = patches[:, k].max()
                continue
            total = np.longdouble(0)
            for p in patches[:, k]:
                total += p ** np.longdouble(exponent)
            scores[n, k] = total / len(patches) if reduction == "mean" else total
    return scores


def relative_error(scores: Tensor, expected: np.ndarray) -> float:
    found = scores.cpu().numpy().astype(np.longdouble)
    same = found == expected
    scale = np.where(same | (expected == 0), 1, np.abs(np.where(np.isinf(expected), 1, expected)))
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0, np.abs(found - expected) / scale).max())


def random_patches(seed: int, count: int, num_images: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities over twelve orders of magnitude, with exact 0, exact 1 and ties among them."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(count, num_classes, generator=generator, dtype=torch.float64) * 12
    probs = 10.0**-magnitude
    kind = torch.rand(count, num_classes, generator=generator)
    probs = torch.where(kind < 0.1, 0.0, torch.where(kind > 0.9, 1.0, probs))
    image_index = torch.randint(num_images, (count,), generator=generator)
    boxes = torch.randint(0, 4, (count, 4), generator=generator).double()
    boxes[:, 2:] += boxes[:, :2]
    return probs, image_index, boxes


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 60),
    exponent=st.sampled_from([0.3, *EXPONENTS, 50.0]),
    reduction=st.sampled_from(["sum", "mean"]),
)
@settings(deadline=None, max_examples=60)
def test_equals_the_definition_in_long_double(seed, count, exponent, reduction):
    probs, image_index, _ = random_patches(seed, count, 5, 3)
    scorer = ImageScorer(5, 3, exponent, reduction)
    scorer.add_batch(probs, image_index)
    expected = loop(probs, image_index, 5, exponent, reduction)
    representable = np.where(np.abs(expected) < 1e-300, 0, expected)
    found = scorer.compute()
    assert relative_error(torch.where(found.abs() < 1e-300, 0, found), representable) < 1e-12


@given(
    seed=st.integers(0, 10**6),
    exponent=st.sampled_from(EXPONENTS),
    reduction=st.sampled_from(["sum", "mean"]),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    parts=st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_any_order_split_and_merge_is_one_pass(seed, exponent, reduction, cuts, parts):
    probs, image_index, boxes = random_patches(seed, 60, 5, 3)
    whole = ImageScorer(5, 3, exponent, reduction)
    whole.add_batch(probs, image_index, boxes)

    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(seed + 1))
    scorers = [ImageScorer(5, 3, exponent, reduction) for _ in range(parts)]
    for turn, rows in enumerate(shuffle.tensor_split(sorted(cuts))):
        scorers[turn % parts].add_batch(probs[rows], image_index[rows], boxes[rows])
    for other in scorers[1:]:
        scorers[0].merge(other)

    torch.testing.assert_close(scorers[0].compute(), whole.compute(), rtol=1e-12, atol=0)
    assert torch.equal(scorers[0].counts, whole.counts)
    assert torch.equal(scorers[0].best_probs, whole.best_probs)
    torch.testing.assert_close(scorers[0].best_boxes, whole.best_boxes, rtol=0, atol=0, equal_nan=True)


def test_many_patches_in_any_split_against_long_double():
    """Show: the largest relative error over exponents, reductions and batch sizes, for 4,000 patches."""
    probs, image_index, _ = random_patches(0, 4000, 20, 4)
    worst = {}
    for exponent in EXPONENTS:
        for reduction in ("sum", "mean"):
            expected = loop(probs, image_index, 20, exponent, reduction)
            for size in (7, 64, 4000):
                scorer = ImageScorer(20, 4, exponent, reduction)
                for rows in torch.arange(4000).split(size):
                    scorer.add_batch(probs[rows], image_index[rows])
                error = relative_error(scorer.compute(), expected)
                worst[exponent] = max(worst.get(exponent, 0.0), error)
    print({exponent: f"{error:.1e}" for exponent, error in worst.items()})
    assert max(worst.values()) < 1e-12


def test_tiny_probabilities_survive_large_exponents():
    scorer = ImageScorer(2, 1, exponent=100)
    scorer.add_batch(torch.tensor([[1e-12], [2e-12]], dtype=torch.float64), torch.tensor([0, 1]))
    assert scorer.compute().tolist() == [[0.0], [0.0]]  # 1e-1200 has no float64
    assert torch.allclose(
        scorer.compute(log=True)[1] - scorer.compute(log=True)[0], torch.tensor(100 * math.log(2)).double()
    )
    fifth = ImageScorer(1, 1, exponent=5)
    fifth.add_batch(torch.tensor([[1e-12], [1.0]]), torch.tensor([0, 0]))
    alone = ImageScorer(1, 1, exponent=5)
    alone.add_batch(torch.tensor([[1e-12]], dtype=torch.float64), torch.tensor([0]))
    assert alone.compute().item() == pytest.approx(1e-60, rel=1e-14)
    assert fifth.compute().item() == 1.0


def test_log_scores_are_the_logarithm():
    probs, image_index, _ = random_patches(3, 50, 5, 3)
    for exponent in EXPONENTS:
        for reduction in ("sum", "mean"):
            scorer = ImageScorer(6, 3, exponent, reduction)
            scorer.add_batch(probs, image_index)
            torch.testing.assert_close(
                scorer.compute(log=True).exp(), scorer.compute().clamp(min=0), rtol=1e-12, atol=0
            )
            assert (scorer.compute()[5] == -math.inf).all()


def test_keeps_the_best_patch_and_the_first_of_equals():
    scorer = ImageScorer(1, 2)
    boxes = torch.tensor([[5.0, 0, 9, 9], [0, 0, 3, 3], [0, 0, 2, 3]])
    scorer.add_batch(
        torch.tensor([[0.9, 0.5], [0.2, 0.5], [0.1, 0.5]]), torch.zeros(3, dtype=torch.int64), boxes
    )
    assert scorer.best_boxes.tolist() == [[[5, 0, 9, 9], [0, 0, 2, 3]]]
    scorer.add_batch(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))  # a batch without boxes
    assert scorer.best_boxes[0, 0].isnan().all()
    assert scorer.best_boxes[0, 1].tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_boxes_are_kept_only_where_they_are_asked_for(exponent):
    """The (N, K, 4) boxes are no part of the memory, and the scores are the same to the last bit."""
    probs, image_index, boxes = random_patches(7, 90, 5, 3)
    kept, without, given_none = (ImageScorer(5, 3, exponent, keep_boxes=keep) for keep in (True, False, True))
    for rows in torch.arange(90).split(13):
        kept.add_batch(probs[rows], image_index[rows], boxes[rows])
        without.add_batch(probs[rows], image_index[rows], boxes[rows])
        given_none.add_batch(probs[rows], image_index[rows])
    assert torch.equal(kept.compute(), without.compute())
    assert kept.best_boxes.isfinite().all() and given_none.best_boxes.isnan().all()
    with pytest.raises(StateError, match="keep_boxes=True"):
        _ = without.best_boxes
    for scorer in (without, given_none):
        state = scorer.state_dict()
        assert not any(value.ndim > 2 for value in state.values() if isinstance(value, torch.Tensor))
        other = ImageScorer(5, 3, exponent)
        other.load_state_dict(state)
        other.merge(kept)  # which has boxes
        both = ImageScorer(5, 3, exponent)
        both.merge(kept)
        both.merge(scorer)
        assert torch.equal(other.best_boxes, both.best_boxes) and both.best_boxes.isfinite().all()
        scorer.merge(kept)
    assert not any(getattr(value, "ndim", 0) > 2 for value in without.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_takes_any_floating_type(device, dtype):
    scorer = ImageScorer(2, 3, device=device)
    scorer.add_batch(torch.full((4, 3), 0.5, dtype=dtype, device=device), torch.tensor([0, 1, 1, 1]))
    assert scorer.compute().cpu().tolist() == [[2**-5] * 3, [3 * 2**-5] * 3]
    assert scorer.compute().device.type == device.type


def test_its_state_is_plain_and_continues_where_it_was():
    probs, image_index, boxes = random_patches(4, 50, 5, 3)
    scorer = ImageScorer(5, 3)
    scorer.add_batch(probs[:20], image_index[:20], boxes[:20])
    file = io.BytesIO()
    torch.save(scorer.state_dict(), file)
    file.seek(0)
    other = ImageScorer(5, 3)
    other.load_state_dict(torch.load(file, weights_only=True))
    for each in (scorer, other):
        each.add_batch(probs[20:], image_index[20:], boxes[20:])
    assert torch.equal(scorer.compute(), other.compute())
    with pytest.raises(StateError, match=r"'exponent': 5.0.*'exponent': 2.0"):
        ImageScorer(5, 3, exponent=2).load_state_dict(scorer.state_dict())
    with pytest.raises(StateError, match="must hold peak"):
        other.load_state_dict({"settings": other.settings(), "total": 0, "count": 0, "box": 0})
    with pytest.raises(ArgumentError, match="cannot merge"):
        scorer.merge(ImageScorer(5, 3, reduction="mean"))


@pytest.mark.parametrize(
    ("probs", "image_index", "message"),
    [
        (torch.rand(2, 4), torch.tensor([0, 1]), r"probs must be \(B, 3\)"),
        (torch.rand(3), torch.tensor([0, 1]), r"probs must be \(B, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), torch.tensor([0, 1]), r"probs must be .* floats"),
        (torch.rand(2, 3), torch.tensor([0]), "one integer per patch"),
        (torch.rand(2, 3), torch.tensor([0.0, 1.0]), "one integer per patch"),
        (torch.rand(2, 3), torch.tensor([0, 5]), r"0\.\.4, got 5 at row 1"),
        (torch.rand(2, 3), torch.tensor([0, -1]), r"0\.\.4, got -1 at row 1"),
        (torch.tensor([[0.1, 2.5, 0]]), torch.tensor([3]), "got 2.5 at row 0, class 1, image 3 .* not logits"),
        (torch.tensor([[0.1, math.nan, 0]]), torch.tensor([3]), "got nan at row 0, class 1, .* gives NaN"),
    ],
)
def test_refuses_what_cannot_be_right(probs, image_index, message):
    scorer = ImageScorer(5, 3)
    with pytest.raises(ArgumentError, match=message):
        scorer.add_batch(probs, image_index)
    assert scorer.counts.sum() == 0


def test_refuses_boxes_that_do_not_fit_and_settings_out_of_range():
    with pytest.raises(ArgumentError, match="one xyxy box per patch"):
        ImageScorer(5, 3).add_batch(torch.rand(2, 3), torch.tensor([0, 1]), torch.zeros(3, 4))
    for wrong in ([5.0, 0, 4, 9], [0, 0, 4, math.nan], [0, 0, math.inf, 9]):
        boxes = torch.tensor([[0.0, 0, 4, 4], wrong])
        with pytest.raises(ArgumentError, match=r"boxes must be finite, xmin <= xmax .* at row 1"):
            ImageScorer(5, 3).add_batch(torch.rand(2, 3), torch.tensor([0, 1]), boxes)
    for arguments, name in [((0, 3), "num_images"), ((5, 0), "num_classes"), ((5, 3, 0), "exponent")]:
        with pytest.raises(ArgumentError, match=name):
            ImageScorer(*arguments)
    with pytest.raises(ArgumentError, match="reduction"):
        ImageScorer(5, 3, reduction="max")
    with pytest.raises(ArgumentError, match="exponent"):
        ImageScorer(5, 3, exponent=math.nan)


def test_unchecked_nan_does_not_pass_for_an_image_without_patches():
    scorer = ImageScorer(2, 2, validate=False)
    scorer.add_batch(torch.tensor([[0.5, math.nan], [0.5, 0.5]]), torch.tensor([0, 0]))
    for scores in (scorer.compute(), scorer.compute(log=True)):
        assert scores.isnan().tolist() == [[False, True], [False, False]]
        assert (scores[1] == -math.inf).all()


def test_an_empty_batch_changes_nothing_and_the_protocol_is_met():
    scorer = ImageScorer(2, 3)
    scorer.add_batch(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert scorer.counts.tolist() == [0, 0]
    assert isinstance(scorer, Scorer)


def test_unchecked_values_below_0_are_no_score_of_0():
    for exponent in (1, 2, math.inf):
        scorer = ImageScorer(2, 2, exponent, validate=False)
        scorer.add_batch(torch.tensor([[-0.5, 0.25], [-0.25, 0.25]]), torch.tensor([0, 0]))
        scorer.add_batch(torch.tensor([[0.5, 0.25]]), torch.tensor([1]))
        assert scorer.compute().isnan().tolist() == [[True, False], [False, False]]


def test_arrays_of_numpy_are_taken_and_what_is_no_number_is_named():
    probs, index, boxes = np.array([[0.5, 0.25]]), np.array([0], np.int32), np.array([[0, 0, 4, 4]])
    scorer, log = ImageScorer(np.int64(1), np.int64(2), 1), PatchLog(1, 2, 1)
    for taken in (scorer, log):
        taken.add_batch(probs, index, boxes)
        assert taken.compute().tolist() == [[0.5, 0.25]]
    assert scorer.best_boxes[0, 0].tolist() == [0, 0, 4, 4]
    with pytest.raises(ArgumentError, match="probs must be a tensor, or numbers"):
        scorer.add_batch("half", index)
