"""A linear probe is scikit-learn's solver on standardized features, folded into one linear layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tests.estimators.data import indicators, table
from transferkit.errors import ArgumentError
from transferkit.estimators import LinearProbe
from transferkit.heads import MULTI_LABEL, SINGLE_LABEL
from transferkit.scorer import average_precision


@pytest.mark.parametrize("columns", [10, 300])  # fewer and more than rows
@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_logistic_regression(columns: int, classes: int) -> None:
    X, y = table(columns=columns, classes=classes)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=5000)).fit(X, y)
    ours = LinearProbe(C=0.1, max_iter=5000).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-3)
    assert (ours.predict(X) == theirs.predict(X)).all()
    assert ours.coef_.shape == ((1 if classes == 2 else 3), columns)


@pytest.mark.parametrize("columns", [10, 300])
def test_it_is_scikit_learns_support_vector_machine(columns: int) -> None:
    X, y = table(columns=columns)
    theirs = make_pipeline(StandardScaler(), LinearSVC(C=0.1, tol=1e-8, max_iter=100_000)).fit(X, y)
    ours = LinearProbe("svm", C=0.1, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=0.02)
    assert not hasattr(ours, "predict_proba")


def test_several_labels_are_one_against_the_rest_each() -> None:
    X, Y = indicators()
    theirs = OneVsRestClassifier(make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8))).fit(X, Y)
    ours = LinearProbe(C=0.1).fit(X, Y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=5e-3)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-3)
    assert (ours.predict(X) == theirs.predict(X)).mean() > 0.999
    assert average_precision(torch.from_numpy(ours.decision_function(X)), torch.from_numpy(Y > 0)).mean() > 0.9


def test_what_does_not_count_is_as_if_it_were_not_there() -> None:
    X, Y = indicators()
    partly = Y.copy()
    partly[:40, 1] = np.nan
    probe = LinearProbe(standardize=False).fit(X, partly)
    alone = LinearProbe(standardize=False).fit(X[40:], Y[40:])
    whole = LinearProbe(standardize=False).fit(X, Y)
    np.testing.assert_allclose(probe.coef_[1], alone.coef_[1], atol=1e-8)
    np.testing.assert_allclose(probe.coef_[0], whole.coef_[0], atol=1e-8)


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize(
    "data", [table(classes=2), table(classes=3), indicators()], ids=["two", "three", "several"]
)
def test_as_a_head_it_gives_the_same_scores(kind: str, data: tuple) -> None:
    X, y = data
    probe = LinearProbe(kind).fit(X, y)
    head = probe.to_head(torch.float64)
    assert (head.in_features, head.out_features) == (10, len(probe.classes_))
    logits = head(torch.from_numpy(X)).detach()
    if y.ndim == 1 and len(probe.classes_) == 2:
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], probe.decision_function(X))
    else:
        np.testing.assert_allclose(logits, probe.decision_function(X))
    if kind == "logistic":
        objective = MULTI_LABEL if y.ndim == 2 else SINGLE_LABEL
        np.testing.assert_allclose(objective.probs(logits), probe.predict_proba(X))


def test_it_clones_and_searches() -> None:
    X, Y = indicators()
    probe = clone(LinearProbe("svm", C=3))
    assert probe.get_params()["C"] == 3
    search = GridSearchCV(LinearProbe(), {"C": [1e-6, 0.1], "kind": ["logistic", "svm"]}, cv=3).fit(X, Y)
    assert search.best_params_["C"] == 0.1
    assert search.score(X, Y) > 0.5


@pytest.mark.parametrize(
    ("probe", "y", "message"),
    [
        (LinearProbe("ridge"), [0, 1, 1], "kind must be 'logistic' or 'svm', got 'ridge'"),
        (LinearProbe(), [1, 1, 1], r"y must have two classes at least, got one class: \[1\]"),
        (
            LinearProbe(),
            [[0, 1], [1, 1], [0, 1]],
            "positives and negatives of each class, got only positives of 1",
        ),
        (
            LinearProbe(),
            [[0, 1], [0, 1], [0, 0]],
            "positives and negatives of each class, got only negatives of 0",
        ),
        (LinearProbe(), [[0, 2], [0, 1], [0, 0]], r"y must be in 0..1 where it has several columns, got 0..2"),
        (LinearProbe(), [0, 1], "y must have one row for each of X's 3, got 2"),
    ],
)
def test_bad_arguments_are_named(probe: LinearProbe, y: list, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        probe.fit(np.eye(3), y)
    with pytest.raises(NotFittedError):
        probe.to_head()
