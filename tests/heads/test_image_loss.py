"""The loss of images is what a slow loop from its definition gives, and trains where single patches say nothing."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.finetune.tiny import tiny_run
from transferkit.errors import ArgumentError
from transferkit.finetune import LoopSettings
from transferkit.finetune.training import Stepper
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL, ImageLoss, log_generalized_mean
from transferkit.labeling import IGNORE


def slow_losses(
    probs: list[list[float]], labels: list[int], images: list[int], count: int, exponent: float
) -> list[float]:
    losses = []
    for image in range(count):
        rows = [row for row, of in enumerate(images) if of == image and labels[row] != IGNORE]
        loss = 0.0
        for k in range(1, len(probs[0])) if rows else ():
            score = (sum(probs[row][k] ** exponent for row in rows) / len(rows)) ** (1 / exponent)
            present = any(labels[row] == k for row in rows)
            loss -= math.log(score) if present else math.log(1 - min(score, 1 - 1e-6))
        losses.append(loss)
    return losses


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_it_is_what_a_slow_loop_gives(data: st.DataObject) -> None:
    patches, count, classes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4)), 4
    exponent = data.draw(st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = 3 * torch.randn(patches, classes, generator=generator, dtype=torch.float64)
    labels = torch.tensor(
        data.draw(st.lists(st.sampled_from([IGNORE, 0, 1, 2, 3]), min_size=patches, max_size=patches))
    )
    images = torch.randint(count, (patches,), generator=generator)
    found = ImageLoss(exponent=exponent).losses(SINGLE_LABEL.log_probs(logits), labels, images, count)
    wanted = slow_losses(logits.softmax(1).tolist(), labels.tolist(), images.tolist(), count, exponent)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_shares_are_read_as_there_from_a_half_on() -> None:
    log_probs = MULTI_LABEL.log_probs(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    images = torch.tensor([0, 1, 1])
    shares = torch.tensor([[0.0, 0.5, 0.4], [1.0, 0.0, 0.0], [torch.nan] * 3])
    by_shares = ImageLoss().losses(log_probs, shares, images, 2)
    by_class = ImageLoss().losses(log_probs, torch.tensor([1, 0, IGNORE]), images, 2)
    torch.testing.assert_close(by_shares, by_class)


def test_an_image_without_a_trace_of_its_class_still_has_a_gradient() -> None:
    logits = torch.tensor([[0.0, -200.0], [0.0, -300.0]], requires_grad=True)
    log_score = log_generalized_mean(
        SINGLE_LABEL.log_probs(logits), torch.ones(2), torch.zeros(2, dtype=torch.int64), 1, exponent=5
    )
    assert log_score[0, 1].item() == pytest.approx(-200 - math.log(2) / 5)
    log_score[0, 1].backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].item() == pytest.approx(1.0)


def test_certainty_is_finite_whether_right_or_wrong() -> None:
    logits = torch.tensor([[-100.0, 100.0]], requires_grad=True)
    for label in (0, 1):
        loss = (
            ImageLoss()
            .losses(SINGLE_LABEL.log_probs(logits), torch.tensor([label]), torch.tensor([0]), 1)
            .sum()
        )
        loss.backward()
        assert math.isfinite(loss.item())
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def batch(labels: list[int], images: list[int]) -> SimpleNamespace:
    pixels = torch.rand(len(labels), 3, 4, 4, generator=torch.Generator().manual_seed(len(labels))) * 255
    return SimpleNamespace(pixels=pixels, labels=torch.tensor(labels), image_index=torch.tensor(images))


def test_a_step_adds_it_to_the_loss_of_patches_and_a_filler_changes_nothing() -> None:
    def gradient(image_loss: ImageLoss | None, *minibatches: SimpleNamespace) -> torch.Tensor:
        run = tiny_run()
        run.image_loss = image_loss
        run.model.eval()  # dropout and batch norm would depend on the minibatch
        run.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
        Stepper(run, LoopSettings()).step(minibatches)  # type: ignore[arg-type]
        return torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])

    one, filler = batch([1, 0, 2, 0], [7, 7, 3, 3]), batch([IGNORE] * 2, [-1, -1])
    plain, both = gradient(None, one), gradient(ImageLoss(weight=2.0), one)
    run = tiny_run()
    logits = run.model.eval()(run.preprocessing(one.pixels))
    losses = ImageLoss().losses(logits.log_softmax(1), one.labels, torch.tensor([1, 1, 0, 0]), 2)
    (2.0 * losses.mean()).backward()
    added = torch.cat([parameter.grad.flatten() for parameter in run.model.parameters()])
    torch.testing.assert_close(both, plain + added)
    torch.testing.assert_close(gradient(ImageLoss(weight=2.0), one, filler), both)


def test_what_is_out_of_range_is_refused() -> None:
    for name in ("weight", "exponent"):
        with pytest.raises(ArgumentError, match=f"{name} must be positive, got 0"):
            ImageLoss(**{name: 0})
