"""An objective's loss is minimized by the probabilities that it reads from the same logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from transferkit.errors import ArgumentError
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL, MultiLabel, Objective, SingleLabel
from transferkit.labeling import IGNORE

OBJECTIVES = [SINGLE_LABEL, MULTI_LABEL]


def logits_and_classes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 5, generator=generator, dtype=torch.float64)
    return logits.to(device), torch.randint(0, 5, (64,), generator=generator).to(device)


def test_single_label_is_softmax_cross_entropy_by_its_definition(device: torch.device) -> None:
    logits, classes = logits_and_classes(device)
    shares = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(SINGLE_LABEL.probs(logits), shares)
    torch.testing.assert_close(SINGLE_LABEL.losses(logits, classes), -shares[range(64), classes].log())


def test_multi_label_is_the_sum_of_binary_cross_entropies_by_its_definition(device: torch.device) -> None:
    logits, classes = logits_and_classes(device)
    probs = 1 / (1 + (-logits).exp())
    torch.testing.assert_close(MULTI_LABEL.probs(logits), probs)
    wanted = functional.one_hot(classes, 5).double()
    by_hand = -(wanted * probs.log() + (1 - wanted) * (1 - probs).log()).sum(dim=1)
    torch.testing.assert_close(MULTI_LABEL.losses(logits, classes), by_hand)
    weighted = -(3 * wanted * probs.log() + (1 - wanted) * (1 - probs).log()).sum(dim=1)
    torch.testing.assert_close(MultiLabel(positive_weight=3.0).losses(logits, classes), weighted)
    per_class = MultiLabel(positive_weight=(3.0,) * 5)
    torch.testing.assert_close(per_class.losses(logits, classes), weighted)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_pulls_the_probabilities_to_the_targets(objective: Objective) -> None:
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = objective.losses(logits, targets).sum()
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(objective.probs(logits.detach()), targets, atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_class_and_its_indicator_are_the_same_target(objective: Objective) -> None:
    logits, classes = logits_and_classes(torch.device("cpu"))
    indicator = functional.one_hot(classes, 5).double()
    torch.testing.assert_close(objective.losses(logits, indicator), objective.losses(logits, classes))
    assert torch.equal(objective.right(logits, indicator), objective.right(logits, classes))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("soft", [False, True])
def test_what_is_not_counted_has_no_loss_and_no_gradient(objective: Objective, soft: bool) -> None:
    logits, classes = logits_and_classes(torch.device("cpu"))
    logits.requires_grad_()
    targets = classes
    if soft:
        targets = functional.one_hot(classes, 5).double()
    targets[::2] = torch.nan if soft else IGNORE
    losses = objective.losses(logits, targets)
    losses.sum().backward()
    counted = torch.arange(64) % 2 == 1
    assert torch.equal(objective.counted(targets), counted)
    assert (losses[~counted] == 0).all() and (losses[counted] > 0).all()
    assert logits.grad is not None
    assert (logits.grad[~counted] == 0).all() and logits.grad.isfinite().all()
    assert not objective.right(logits, targets)[~counted].any()


def test_one_class_can_be_left_out_of_a_row() -> None:
    logits, _ = logits_and_classes(torch.device("cpu"))
    targets = (torch.rand(64, 5, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    partly = targets.clone()
    partly[:, 2] = torch.nan
    rest = [0, 1, 3, 4]
    torch.testing.assert_close(
        MULTI_LABEL.losses(logits, partly), MULTI_LABEL.losses(logits[:, rest], targets[:, rest])
    )
    assert MULTI_LABEL.counted(partly).all()


def test_right_means_what_accuracy_means() -> None:
    logits = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 3.0, 2.0]])
    assert SINGLE_LABEL.right(logits, torch.tensor([0, 2])).tolist() == [True, False]
    assert MULTI_LABEL.right(logits, torch.tensor([0, 1])).tolist() == [True, False]
    assert MULTI_LABEL.right(logits, torch.tensor([[1.0, 0, 0], [0, 1, 1]])).tolist() == [True, True]


def test_class_weights_and_smoothing_are_torchs() -> None:
    logits, classes = logits_and_classes(torch.device("cpu"))
    weights = (1.0, 2.0, 0.5, 1.0, 0.0)
    ours = SingleLabel(label_smoothing=0.1, class_weights=weights).losses(logits, classes)
    theirs = functional.cross_entropy(
        logits, classes, torch.tensor(weights).double(), reduction="none", label_smoothing=0.1
    )
    torch.testing.assert_close(ours, theirs)


def test_values_that_are_equal_are_one_value() -> None:
    assert SingleLabel() == SINGLE_LABEL and hash(MultiLabel()) == hash(MULTI_LABEL)
    assert math.isclose(float(MULTI_LABEL.probs(torch.zeros(1))), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SingleLabel(label_smoothing=1), r"label_smoothing must be in \[0, 1\), got 1"),
        (lambda: SingleLabel(class_weights=(1, -1)), r"class_weights must be zero or positive, got \(1, -1\)"),
        (lambda: MultiLabel(positive_weight=0), "positive_weight must be positive, got 0"),
        (
            lambda: SINGLE_LABEL.losses(torch.zeros(2, 3), torch.zeros(2, 4)),
            r"targets must be \(B,\) int64 or \(B, K\) floating for logits \(2, 3\), got \(2, 4\) torch.float32",
        ),
        (
            lambda: MULTI_LABEL.losses(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
            r"got \(3,\) torch.int64",
        ),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
