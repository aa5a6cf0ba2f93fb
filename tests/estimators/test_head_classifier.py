"""A head trained the scikit-learn way is a head, and the seed alone decides what it learns."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from tests.estimators.data import indicators, table
from transferkit.errors import ArgumentError, DivergedError
from transferkit.estimators import HeadClassifier, LinearProbe
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL
from transferkit.optimization import EarlyStopping, WeightAverage

LINEAR = HeadClassifier(epochs=20, learning_rate=0.03, random_state=0)


def test_without_dropout_and_decay_a_linear_head_reaches_the_loss_of_scikit_learns_solver() -> None:
    X, y = table(rows=240)
    y = np.where(np.arange(240) % 10 == 0, (y + 1) % 3, y)  # not separable: the best loss is finite
    solved = LinearProbe(C=1e6, max_iter=5000).fit(X, y)
    best = -np.log(solved.predict_proba(X)[range(240), y]).mean()
    trained = HeadClassifier(epochs=300, learning_rate=0.1, weight_decay=0, random_state=0).fit(X, y)
    assert -np.log(trained.predict_proba(X)[range(240), y]).mean() == pytest.approx(best, rel=0.05)


@pytest.mark.parametrize("head", ["linear", "mlp", "cosine", lambda width, classes: nn.Linear(width, classes)])
@pytest.mark.parametrize("data", [table(classes=2), table(), indicators()], ids=["two", "three", "several"])
def test_every_head_learns_every_kind_of_labels(head: object, data: tuple) -> None:
    X, y = data
    classifier = clone(LINEAR).set_params(head=head, hidden=(64,), learning_rate=0.01, epochs=60).fit(X, y)
    # All four classes of a row right, where there are four.
    assert classifier.score(X, y) > (0.9 if y.ndim == 1 else 0.5)
    logits = classifier.to_head()(torch.from_numpy(X)).detach()
    assert logits.shape == (120, len(classifier.classes_))
    np.testing.assert_allclose(classifier.objective_.probs(logits), classifier.predict_proba(X))
    assert classifier.objective_ == (SINGLE_LABEL if y.ndim == 1 else MULTI_LABEL)


def test_exclusive_classes_may_be_trained_each_by_itself() -> None:
    X, y = table()
    classifier = clone(LINEAR).set_params(objective=MULTI_LABEL).fit(X, y)
    probs = classifier.predict_proba(X)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert (probs.argmax(axis=1) == classifier.predict(X)).all()
    assert classifier.score(X, y) > 0.9


def test_the_seed_alone_decides_and_the_worlds_randomness_is_left_alone() -> None:
    X, y = table()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = HeadClassifier("mlp", hidden=(8,), epochs=3, random_state=1).fit(X, y)
    assert torch.equal(torch.rand(3), expected)
    again, other = clone(first).fit(X, y), clone(first).set_params(random_state=2).fit(X, y)
    assert (first.decision_function(X) == again.decision_function(X)).all()
    assert (first.decision_function(X) != other.decision_function(X)).any()
    assert (pickle.loads(pickle.dumps(first)).decision_function(X) == first.decision_function(X)).all()


def test_it_computes_in_the_dtype_it_is_given(device: torch.device) -> None:
    X, y = table()
    classifier = clone(LINEAR).set_params(epochs=1, device=device).fit(X.astype(np.float32), y)
    assert classifier.decision_function(X).dtype == np.float32
    assert next(classifier.head_.parameters()).device.type == device.type
    assert clone(classifier).fit(X, y).decision_function(X).dtype == np.float64


def test_early_stopping_takes_the_best_epoch_by_the_held_out_part() -> None:
    random = np.random.default_rng(0)
    X, y = random.standard_normal((80, 200)), random.integers(0, 2, 80)  # nothing to learn but by heart
    settings = {"learning_rate": 0.03, "epochs": 100, "random_state": 0, "validation_fraction": 0.25}
    stopped = HeadClassifier(early_stopping=EarlyStopping(patience=3), **settings).fit(X, y)
    assert stopped.n_iter_ == len(stopped.losses_) == len(stopped.held_losses_) < 100
    assert int(np.argmin(stopped.held_losses_)) == stopped.n_iter_ - 4
    through = HeadClassifier(**settings).fit(X, y)
    assert through.n_iter_ == 100 and through.held_losses_ == []
    assert np.abs(stopped.decision_function(X)).mean() < 0.5 * np.abs(through.decision_function(X)).mean()


def test_an_average_of_weights_is_taken_instead_of_the_last() -> None:
    X, y = table()
    last = clone(LINEAR).fit(X, y)
    averaged = clone(LINEAR).set_params(average=WeightAverage(decay=None, start=10)).fit(X, y)
    assert averaged.losses_ == last.losses_
    assert (averaged.decision_function(X) != last.decision_function(X)).any()
    assert averaged.score(X, y) > 0.9


def test_constant_features_are_no_trouble() -> None:
    X, y = table()
    X[:, 3] = 0.1
    assert np.isfinite(clone(LINEAR).fit(X, y).decision_function(X)).all()


def test_it_searches() -> None:
    X, y = table()
    grid = {"learning_rate": [1e-6, 0.03], "head": ["linear", "cosine"]}
    search = GridSearchCV(clone(LINEAR).set_params(epochs=10), grid, cv=2).fit(X, y)
    assert search.best_params_["learning_rate"] == 0.03


@pytest.mark.parametrize(
    ("settings", "y", "message"),
    [
        ({"head": "liner"}, [0, 1, 1], "head must be 'linear', 'mlp', 'cosine' or a function, got 'liner'"),
        ({"epochs": 0}, [0, 1, 1], "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, [0, 1, 1], "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0}, [0, 1, 1], "learning_rate must be positive, got 0"),
        (
            {"objective": SINGLE_LABEL},
            [[0, 1], [1, 1], [0, 0]],
            "objective must be multi-label where y has several columns, got softmax and cross-entropy",
        ),
    ],
)
def test_bad_arguments_are_named(settings: dict, y: list, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        HeadClassifier(**settings).fit(np.eye(3), y)


def test_a_loss_that_is_no_number_is_said_so() -> None:
    X, y = table()
    with pytest.raises(DivergedError, match=r"the loss became .* in epoch \d+; lower learning_rate=1e\+200"):
        HeadClassifier(learning_rate=1e200, epochs=5).fit(X, y)


def test_a_head_with_batch_norm_may_have_one_row_left_over() -> None:
    X, y = table(rows=33)
    head = lambda width, classes: nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))  # noqa: E731
    classifier = clone(LINEAR).set_params(head=head, batch_size=16, epochs=2)
    with pytest.warns(UserWarning, match=r"one row only: head\.0 took their running statistics"):
        classifier.fit(X, y)
    assert classifier.head_.head[0].num_batches_tracked == 4  # of six minibatches two hold one row
